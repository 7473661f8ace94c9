"""Options that are about another one: each acts, or the user is told that it did not."""

import re
from typing import Literal, get_args, get_origin

import pytest

from musubi import registry
from musubi.config.commands import COMMANDS
from musubi.config.generate import GenerateConfig
from musubi.config.idle import NEEDS, NEEDS_OF, idle, said
from musubi.config.options import for_architecture
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError

ARCHITECTURES = [registry.find(name) for name in registry.names()]
MODELS = [(c, None) for c in COMMANDS if c.place is None and c.place != "plan"]
MODELS += [(c, a) for c in COMMANDS if c.place not in (None, "plan") for a in ARCHITECTURES]
MODEL = {(c.name, a and a.name): c.options(a) for c, a in MODELS}


def rules_of(model, architecture):
    rules = {name: rule for name, rule in NEEDS.items() if name in model.model_fields}
    for kind in model.__mro__:
        rules |= NEEDS_OF.get(kind.__name__, {})
    own = architecture.options if architecture else ()
    return rules | {o.name: (o.needs,) for o in own if o.needs and o.name in model.model_fields}


def value_for(model, name):
    """Some value that an option takes, and that is not its default."""
    field = model.model_fields[name]
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            return next(v for v in get_args(kind) if v != field.default)
        if kind is bool:
            return not field.default
        if kind is int:
            return 9
        if kind is float:
            return 0.25
        if get_origin(kind) is list:
            return ["1.0"]
        if get_origin(kind) is tuple:
            return ("inductor", "default", "auto", "false")
    return "100" if "steps" in name else "x"


def names_in(rule):
    parts = re.split(r" or | and ", rule)
    return {p.removeprefix("no ").partition("!=")[0].partition("=")[0].rstrip("*") for p in parts}


BASE = {
    "generate": {"prompt": "a", "save_path": "x"},
    "lora merge": {"lora_weight": ["a"], "save_merged_model": "x"},
    "lora resize": {"files": ["a"], "output": "x"},
    "lora ema": {"files": ["a", "b"], "output_file": "x"},
}


def required(model):
    return {n: [f"{n}"] if "list" in str(f.annotation) else "x"
            for n, f in model.model_fields.items() if f.is_required()}  # fmt: skip


# What makes an option idle where its partner's default is such that it acts.
IDLE_WITH = {
    "output": {"mode": "console"},
    "log_tracker_name": {"log_with": "none"},
    "log_tracker_config": {"log_with": "none"},
    "log_config": {"log_with": "none"},
    "discrete_flow_shift": {"timestep_sampling": "uniform"},
    "trim_tail_frames": {"output_type": "latent"},
}
CASES = [
    (key, name)
    for (command, architecture) in MODELS
    for key in [(command.name, architecture and architecture.name)]
    for name in rules_of(MODEL[key], architecture)
]


@pytest.mark.parametrize(
    ("key", "name"), CASES, ids=lambda v: "-".join(map(str, v)) if isinstance(v, tuple) else v
)
def test_an_option_without_its_partner_is_told_or_refused_and_with_it_is_not(key, name):
    architecture = registry.find(key[1]) if key[1] else None
    model = MODEL[key]
    base = {**required(model), **BASE.get(key[0], {})}
    rules = rules_of(model, architecture)[name]
    if all(p.startswith("no ") for rule in rules for p in rule.split(" or ")):
        partner = names_in(rules[0]).pop()
        if partner not in model.model_fields:
            return
        alone = {name: value_for(model, name), partner: value_for(model, partner)}
        together = {name: value_for(model, name)}
    else:
        if not any(names_in(rule) & model.model_fields.keys() for rule in rules):
            return
        alone, together = {name: value_for(model, name)}, {name: value_for(model, name)}
        alone |= IDLE_WITH.get(name, {})
        for rule in rules:
            for part in rule.split(" or ")[0].split(" and "):
                partner, unequal, _ = part.partition("!=")
                partner, equal, values = part.partition("=") if not unequal else (partner, "", "")
                partner = {"lora_weight*": "lora_weight"}.get(partner, partner)
                if partner.startswith("no ") or partner not in model.model_fields:
                    continue
                if unequal:
                    acting = {
                        "dynamo_backend": "inductor",
                        "log_with": "all",
                        "timestep_sampling": "shift",
                    }
                    together |= {partner: acting[partner]} if partner in acting else {}
                else:
                    together[partner] = values.split(",")[0] if equal else value_for(model, partner)
    try:
        lines = idle(model(**{**base, **alone}), architecture)
        assert any(line.startswith(f"--{name} changes nothing") for line in lines), lines
    except ConfigError as error:
        assert f"--{name}" in str(error)
    if key[0] == "train":
        together.setdefault("sample_prompts", "p.txt")
        together.setdefault("sample_at_first", True)
    try:
        lines = idle(model(**{**base, **together}), architecture)
    except ConfigError:  # the partner has a partner of its own
        return
    lines = [line for line in lines if " has no " not in line]
    assert not any(f"--{name} " in line for line in lines), (together, lines)


def test_rules_name_options_that_exist():
    for name, rules in NEEDS.items():
        owners = [m for m in MODEL.values() if name in m.model_fields]
        assert owners, name
        for rule in rules:
            for partner in names_in(rule):
                assert any(any(f.startswith(partner) for f in m.model_fields) for m in owners), (
                    name,
                    partner,
                )
    for architecture in ARCHITECTURES:
        for option in architecture.options:
            for partner in names_in(option.needs) if option.needs else ():
                assert any(partner in m.model_fields for m in MODEL.values()), option.name


def test_what_is_said():
    assert said("a or b=x and c=y") == "without --a or --b x and --c y"
    assert said("no a") == "beside --a"
    assert said("a=x,y") == "without --a x or y"
    assert said("a!=x") == "without another --a than x"


def train(**given):
    return TrainConfig(**given)


def test_nothing_is_said_of_defaults_and_of_what_acts():
    assert idle(train()) == []
    assert idle(train(lr_scheduler_power=1.0, save_last_n_steps=None)) == []
    assert idle(train(save_last_n_steps=3, save_every_n_steps=1)) == []
    assert idle(train(save_last_n_steps=3)) == [
        "--save_last_n_steps changes nothing without --save_every_n_steps."
    ]


def test_what_a_command_of_another_purpose_does_not_read_is_one_line():
    wan = registry.find("wan")
    model = for_architecture(GenerateConfig, wan, "generate")
    found = idle(model(latent_path=["a"], save_path="x", seed=3, infer_steps=4, crf=3), wan)
    assert found == ["--infer_steps, --seed change nothing: --latent_path only decodes."]
    found = idle(model(save_merged_model="a", lora_weight=["b"], seed=3), wan)
    assert found == ["--seed changes nothing: --save_merged_model only merges."]


def test_an_encoder_that_an_architecture_lacks():
    hunyuan = registry.find("hunyuan_video")
    model = for_architecture(GenerateConfig, hunyuan, "generate")
    (line,) = idle(model(prompt="a", save_path="x", image_encoder_dtype="bf16"), hunyuan)
    assert line == "--image_encoder_dtype changes nothing: HunyuanVideo has no image encoder."


def test_text_encoders_in_training_are_for_previews():
    wan = registry.find("wan")
    model = for_architecture(TrainConfig, wan, "train")
    assert idle(model(t5="x", vae="y"), wan) == ["--t5 changes nothing without --sample_prompts."]


@pytest.mark.parametrize(
    "kind", ["prodigy", "Prodigy", "prodigyopt.Prodigy", "dadaptation.DAdaptAdam"]
)
def test_two_rates_are_refused_beside_an_optimizer_that_finds_one(kind):
    with pytest.raises(ConfigError, match="finds one learning rate for all"):
        train(optimizer_type=kind, network_args=["loraplus_lr_ratio=4"])
    train(optimizer_type=kind)
    train(optimizer_type="adamw", network_args=["loraplus_lr_ratio=4"])
