"""The table of model families: every part that a row names exists, and no family is asked for by name elsewhere."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re

import pytest

from runtime.errors import ConfigError, RequestError
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import ENGINES
from runtime.model.families import FAMILIES, check_supported, family_of, imported, loop_specs, parse_config
from runtime.recordings.recorded_arrays import RecordedArrays
from runtime.sampling.constraints import SamplingRules, is_editable

ROOT = pathlib.Path(__file__).parents[2]

MAR_ROWS = {
    "mar": ModelConfig(),
    "mar-causal": ModelConfig(attention="causal"),
    "mar-vq": ModelConfig(head="vq", codebook_size=8),
    "mar-causal-vq": ModelConfig(attention="causal", head="vq", codebook_size=8),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_everything_that_a_row_names_exists(name: str) -> None:
    family = FAMILIES[name]
    for field in ("request", "example", "host_loop", "example_sizes", "costs", "plan", "trainer", "batches"):
        assert callable(imported(getattr(family, field))), field
    assert callable(imported(family.eager).sample_request)
    if family.recorded is not None:
        assert issubclass(imported(family.recorded), RecordedArrays)
    if family.published is not None:
        assert {"is_published", "load_published"} <= vars(imported(family.published)).keys()
    for module in family.modules.values():
        assert inspect.isclass(imported(module))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sampling_of_a_row_has_every_function_that_rules_have(name: str) -> None:
    rules = imported(FAMILIES[name].sampling)
    for function, expected in inspect.getmembers(SamplingRules, inspect.isfunction):
        if not function.startswith("_"):
            parameters = list(inspect.signature(expected).parameters)[1:]
            assert list(inspect.signature(getattr(rules, function)).parameters) == parameters, function


@pytest.mark.parametrize("name", MAR_ROWS)
def test_the_config_of_a_mar_says_its_row_and_is_stored_without_it(name: str) -> None:
    config = MAR_ROWS[name]
    assert family_of(config) is FAMILIES[name]
    assert "family" not in config.to_dict()
    assert parse_config(config.to_dict(), "a file") == config


@pytest.mark.parametrize("name", MAR_ROWS)
def test_a_row_has_a_module_for_each_engine_and_the_backbone_reads_its_condition(name: str) -> None:
    family = FAMILIES[name]
    specs = loop_specs(MAR_ROWS[name], family.modules)
    assert specs.keys() == family.modules.keys()
    assert specs.keys() >= {*ENGINES}
    assert family.condition in [tensor.name for tensor in specs["backbone"].inputs]


def test_an_unknown_family_is_one_line_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"family": "unicorn"}, "manifest.json")
    assert str(caught.value) == (
        f"manifest.json: the family 'unicorn' is unknown; this version has {', '.join(FAMILIES)}"
    )


def test_a_command_refuses_a_family_with_the_reason_of_its_row() -> None:
    assert check_supported(MAR_ROWS["mar"], "mar bench") is MAR_ROWS["mar"]
    with pytest.raises(RequestError, match=r"^mar bench does not support models with causal attention; mar generate"):
        check_supported(MAR_ROWS["mar-causal-vq"], "mar bench")


def test_a_row_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAMILIES["mar"].kind = "another"  # type: ignore[misc]


def test_only_the_table_and_a_familys_own_files_ask_for_attention_or_head() -> None:
    """What differs between families is in the row, so nothing else compares the fields of a config that decide it."""
    asks = re.compile(r"\b(?:config|model)\.(?:attention|head|family)\b *(==|!=|\bin\b)")
    own = {"runtime/model/config.py", "runtime/sampling/mar_sampling.py"}
    found = {
        str(file.relative_to(ROOT))
        for package in ("runtime", "mar_export", "calibration")
        for file in (ROOT / package).rglob("*.py")
        if asks.search(file.read_text())
    }
    assert found <= own


WORKING = ("mar export", "mar inspect", "mar train", "mar generate", "mar edit", "mar serve")
"""Commands that the page names, whether a row refuses them or not."""


def works(command: str, name: str) -> bool:
    editable = command != "mar edit" or name not in MAR_ROWS or is_editable(MAR_ROWS[name])
    return editable and command not in FAMILIES[name].refused


def page_of_families() -> list[str]:
    """The table of the page: a line for each command, a column for each family."""
    commands = dict.fromkeys([*WORKING, *(command for family in FAMILIES.values() for command in family.refused)])
    return [
        f"| what | {' | '.join(FAMILIES)} |",
        "|---" * (1 + len(FAMILIES)) + "|",
        *(
            f"| {command} | {' | '.join('yes' if works(command, name) else 'no' for name in FAMILIES)} |"
            for command in commands
        ),
    ]


def test_the_page_of_families_says_what_the_table_says() -> None:
    page = (ROOT / "docs/reference/families.md").read_text()
    table = page.split("<!-- families -->\n")[1].split("<!-- end of families -->")[0]
    assert table.strip().splitlines() == page_of_families()
