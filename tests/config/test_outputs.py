"""What a command will write to is looked at before it works."""

import pytest

from musubi import registry
from musubi.config.commands import COMMANDS
from musubi.config.outputs import check_outputs, check_writable, outputs_of
from musubi.errors import ConfigError

WAN = registry.find("wan")
# Options whose name or help says that something is written, and is not at their path.
READ_ONLY = {"output_type", "output_name", "json_output"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_option_that_names_what_is_written_is_looked_at(command):
    model = command.options(WAN)
    written = {
        name
        for name, field in model.model_fields.items()
        if name.startswith(("output", "save_path", "save_merged", "out"))
        or "to write" in (field.description or "")
        or "Folder for" in (field.description or "")
    } - READ_ONLY
    assert written - {"save_precision", "to"} <= set(outputs_of(model))


@pytest.mark.parametrize(
    ("kind", "path", "said"),
    [
        ("file", "folder", "is a folder"),
        ("folder", "file", "it is a file"),
        ("file", "file/a/b", "is a file, and no folder"),
        ("folder", "file/a", "is a file, and no folder"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, kind, path, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=said):
        check_writable(tmp_path / path, "--output", kind)


def test_nothing_is_made(tmp_path):
    check_writable(tmp_path / "new" / "a.safetensors", "--output", "file")
    check_writable(tmp_path / "new", "--output", "folder")
    assert not list(tmp_path.iterdir())


def test_a_converted_lora_is_a_folder_for_peft(tmp_path):
    model = next(c for c in COMMANDS if c.name == "lora convert").options(None)
    (tmp_path / "x").mkdir()
    check_outputs(model(input="a", output=str(tmp_path / "x"), target="peft"))
    with pytest.raises(ConfigError, match="--output is a folder"):
        check_outputs(model(input="a", output=str(tmp_path / "x"), target="kohya"))
