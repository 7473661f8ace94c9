import shutil

import pytest
import transformers
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers

from musubi.errors import ConfigError
from musubi.plugin import Tokenizer
from musubi.weights.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "cat"])}
    fast = Fast(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tok")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(str(folder))
    return folder


@pytest.fixture
def text(make_component):
    return make_component(
        name="t5", role="text", tokenizer=Tokenizer(repo="Owner/Repo", subfolder="google/big")
    )


@pytest.fixture
def hub(monkeypatch):
    """No hub: what is asked of it is kept, and answered as `answers` says."""
    asked = []
    answers = {True: OSError("not in the cache"), False: OSError("no network\nat all")}
    real = transformers.AutoTokenizer.from_pretrained

    def ask(name, *args, subfolder=None, **kwargs):
        if subfolder is None:
            return real(name, *args, **kwargs)
        local = kwargs["local_files_only"]
        asked.append((name, subfolder, local))
        if isinstance(answers[local], Exception):
            raise answers[local]
        return answers[local]

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", ask)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return asked, answers


def _works(tokenizer):
    return tokenizer("a cat")["input_ids"] == [3, 4] and tokenizer.pad_token_id == 0


def test_what_the_user_names_comes_first(text, published, tmp_path, hub):
    assert _works(load_tokenizer(text, published, tmp_path / "t5.pth"))
    assert _works(load_tokenizer(text, published / "tokenizer.json", None))
    assert not hub[0]


def test_a_bare_file_is_enough(text, published, tmp_path, hub):
    shutil.copy(published / "tokenizer.json", tmp_path)
    assert _works(load_tokenizer(text, tmp_path / "tokenizer.json", None))
    assert _works(load_tokenizer(text, None, tmp_path / "t5.safetensors"))


@pytest.mark.parametrize(
    ("weights", "place"),
    [
        ("[x] y/t5.pth", "[x] y/google/big"),
        ("x/t5.pth", "x/big"),
        ("x/t5.pth", "x/tokenizer"),
        ("x/t5.pth", "x"),
        ("x/t5.pth", "tokenizer"),
        ("x/t5.pth", "x/t5_tokenizer"),
        ("x/text_encoder_2/model.safetensors", "x/tokenizer_2"),
    ],
)
def test_the_places_beside_the_weights(text, published, tmp_path, hub, weights, place):
    shutil.copytree(published, tmp_path / place, dirs_exist_ok=True)
    assert _works(load_tokenizer(text, None, tmp_path / weights))
    assert not hub[0]


def test_the_folder_of_the_weights_may_be_given(text, published, tmp_path, hub):
    shutil.copytree(published, tmp_path / "tokenizer")
    (tmp_path / "text_encoder").mkdir()
    assert _works(load_tokenizer(text, None, tmp_path / "text_encoder"))


def test_the_cache_is_asked_before_the_hub(text, tmp_path, hub):
    asked, answers = hub
    answers[True] = found = object()
    assert load_tokenizer(text, None, tmp_path / "t5.pth") is found
    assert asked == [("Owner/Repo", "google/big", True)]
    answers[True], answers[False] = OSError(), found
    assert load_tokenizer(text, None, tmp_path / "t5.pth") is found
    assert asked[1:] == [("Owner/Repo", "google/big", True), ("Owner/Repo", "google/big", False)]


def test_no_tokenizer_anywhere_says_what_to_download(text, tmp_path, hub, monkeypatch):
    with pytest.raises(ConfigError, match=r"could not be downloaded: no network\.") as caught:
        load_tokenizer(text, None, tmp_path / "t5.pth")
    assert "Download the folder Owner/Repo/google/big" in caught.value.fix
    assert "--t5_tokenizer" in caught.value.fix
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub[0].clear()
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        load_tokenizer(text, None, tmp_path / "t5.pth")
    assert [local for *_, local in hub[0]] == [True]


def test_a_tokenizer_nobody_publishes_must_be_given(make_component, tmp_path):
    lonely = make_component(name="llm", role="text")
    with pytest.raises(ConfigError, match=r"none is beside .*Give --llm_tokenizer PATH"):
        load_tokenizer(lonely, None, tmp_path / "x.pth")


def test_what_cannot_be_read_is_named(text, tmp_path):
    with pytest.raises(ConfigError, match=r"does not exist.*Give --t5_tokenizer a folder"):
        load_tokenizer(text, tmp_path / "no", None)
    with pytest.raises(ConfigError, match=r"has no tokenizer_config\.json beside it"):
        load_tokenizer(text, tmp_path, None)
    (tmp_path / "tokenizer.json").write_text("nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tokenizer(text, tmp_path, None)
