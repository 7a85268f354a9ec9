"""Every official name, signature, option and configuration key, against the committed list public_surface.json.

Ours must take every call that the official signature takes: the same names in the same order, of the same kind and with equal
defaults. More keyword-only or trailing optional parameters are allowed, and a default where the official code has none.
"""

import argparse
import ast
import enum
import importlib
import inspect
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dinov2.configs import dinov2_default_config, load_and_merge_config, load_config

ROOT = Path(__file__).resolve().parents[2]
SURFACE = json.loads((Path(__file__).parent / "public_surface.json").read_text(encoding="utf-8"))

DEVIATIONS = SURFACE["deviations"]
P = inspect.Parameter
POSITIONAL = (P.POSITIONAL_ONLY, P.POSITIONAL_OR_KEYWORD)


def module_of(name: str) -> Any:
    if name == "hubconf":  # lies beside the packages, not in one
        return SimpleNamespace(**runpy.run_path(str(ROOT / "hubconf.py")))
    return importlib.import_module(name)


def look_up(module: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        module = getattr(module, part)
    return module


def entries(kind: str | None = None) -> list[Any]:
    """One test case for each name that we keep; with a kind, those whose entry has it."""
    cases = []
    for module, names in SURFACE["modules"].items():
        for name, promise in names.items():
            is_absent = promise is None and f"{module}:{name}" in DEVIATIONS
            if not is_absent and (kind is None or (isinstance(promise, dict) and kind in promise)):
                cases.append(pytest.param(module, name, promise, id=f"{module}:{name}"))
    return cases


def signatures(*, deviating: bool = False) -> list[Any]:
    """(module, dotted name, official signature) of functions, constructors and methods that we keep, or that we do not."""
    cases = []
    for case in entries():
        module, name, promise = case.values
        found = {name: promise} if isinstance(promise, str) else {}
        if isinstance(promise, dict):
            if "init" in promise:
                found[name] = promise["init"]
            found |= {f"{name}.{method}": text for method, text in promise.get("methods", {}).items()}
        for dotted, text in found.items():
            if text is not None and (f"{module}:{dotted}" in DEVIATIONS) == deviating:
                cases.append(pytest.param(module, dotted, text, id=f"{module}:{dotted}"))
    return cases


def parse_signature(text: str) -> inspect.Signature:
    """The signature that the text would give to a function; a default that is a name stays text, as `plain` gives it."""
    arguments = ast.parse(f"def f{text}: ...").body[0].args  # type: ignore[attr-defined]
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [P.empty] * (len(positional) - len(arguments.defaults)) + [_default(d) for d in arguments.defaults]
    kinds = [P.POSITIONAL_ONLY] * len(arguments.posonlyargs) + [P.POSITIONAL_OR_KEYWORD] * len(arguments.args)
    parameters = [P(a.arg, k, default=d) for a, k, d in zip(positional, kinds, defaults, strict=True)]
    if arguments.vararg:
        parameters.append(P(arguments.vararg.arg, P.VAR_POSITIONAL))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(P(argument.arg, P.KEYWORD_ONLY, default=P.empty if default is None else _default(default)))
    if arguments.kwarg:
        parameters.append(P(arguments.kwarg.arg, P.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _default(node: ast.expr) -> Any:
    try:
        return plain(ast.literal_eval(node))
    except ValueError:
        return ast.unparse(node).removeprefix("nn.")


def plain(value: Any) -> Any:
    """A default in a form that can be compared with text: members as `Class.NAME`, classes by name, sequences as lists."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, (type, torch.dtype, torch.device)):
        return value.__name__ if isinstance(value, type) else str(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return "set()" if not value else sorted(value)
    return value


def differences(ours: inspect.Signature, official: inspect.Signature) -> list[str]:
    """Why a call that the official signature takes could fail, or mean something else, here; empty when it cannot."""
    mine = [p for p in ours.parameters.values() if p.name != "self"]
    order = [p for p in mine if p.kind in POSITIONAL]
    wanted_order = [p for p in official.parameters.values() if p.kind in POSITIONAL]
    found, matched = [], set()
    for position, wanted in enumerate(wanted_order):
        here = order[position] if position < len(order) else None
        if here is None or (here.name != wanted.name and wanted.kind != P.POSITIONAL_ONLY):
            found.append(f"parameter {position} is {here and here.name!r}, officially {wanted.name!r}")
        else:
            matched.add(here.name)
            found += _default_difference(here, wanted)
    by_name = {p.name: p for p in mine if p.kind in (P.POSITIONAL_OR_KEYWORD, P.KEYWORD_ONLY)}
    for wanted in official.parameters.values():
        if wanted.kind in (P.VAR_POSITIONAL, P.VAR_KEYWORD) and not any(p.kind == wanted.kind for p in mine):
            found.append(f"no {'**' if wanted.kind == P.VAR_KEYWORD else '*'}{wanted.name}")
        elif wanted.kind == P.KEYWORD_ONLY and wanted.name not in by_name:
            found.append(f"no parameter {wanted.name!r}")
        elif wanted.kind == P.KEYWORD_ONLY:
            matched.add(wanted.name)
            found += _default_difference(by_name[wanted.name], wanted)
    needed = [p.name for p in mine if p.default is P.empty and p.kind not in (P.VAR_POSITIONAL, P.VAR_KEYWORD)]
    return found + [
        f"{name!r} must be given, and official callers do not know it" for name in needed if name not in matched
    ]


def _default_difference(here: inspect.Parameter, wanted: inspect.Parameter) -> list[str]:
    if wanted.default is P.empty or plain(here.default) == wanted.default:
        return []
    return [f"{here.name}={plain(here.default)!r}, officially {wanted.default!r}"]


@pytest.mark.parametrize("module", SURFACE["modules"])
def test_module_exists(module):
    module_of(module)


@pytest.mark.parametrize(("module", "name", "promise"), entries())
def test_name_exists(module, name, promise):
    assert look_up(module_of(module), name) is not None


@pytest.mark.parametrize(("module", "name", "text"), signatures())
def test_signature_takes_the_official_calls(module, name, text):
    found = look_up(module_of(module), name)
    assert not differences(inspect.signature(found), parse_signature(text))


@pytest.mark.parametrize(("module", "name", "text"), signatures(deviating=True))
def test_a_listed_deviation_of_a_signature_is_one(module, name, text):
    """So that the list of deviations holds nothing that was mended since."""
    assert differences(inspect.signature(look_up(module_of(module), name)), parse_signature(text))


@pytest.mark.parametrize("key", DEVIATIONS)
def test_a_listed_deviation_is_about_something_official(key):
    module, _, name = key.partition(":")
    names, options = SURFACE["modules"].get(module, {}), SURFACE["options"].get(module, {})
    owner, _, method = name.rpartition(".")
    assert name in names or name in options or method in names[owner]["methods"]


@pytest.mark.parametrize("key", DEVIATIONS)
def test_every_deviation_is_documented(key):
    name = key.rpartition(":")[2].rpartition(".")[2]
    assert name in (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("module", "name", "promise"), entries("methods"))
def test_class_has_the_official_methods(module, name, promise):
    cls = look_up(module_of(module), name)
    kept = [method for method in promise["methods"] if f"{module}:{name}.{method}" not in DEVIATIONS]
    assert not [method for method in kept if not callable(getattr(cls, method, None))]


@pytest.mark.parametrize(("module", "name", "promise"), entries("attributes"))
def test_class_has_the_official_attributes(module, name, promise):
    cls = look_up(module_of(module), name)
    assert not [attribute for attribute in promise["attributes"] if not hasattr(cls, attribute)]


@pytest.mark.parametrize(("module", "name", "promise"), entries("bases"))
def test_class_has_the_official_superclasses(module, name, promise):
    ancestors = {cls.__name__ for cls in look_up(module_of(module), name).__mro__}
    assert set(promise["bases"]) <= ancestors


@pytest.mark.parametrize(("module", "name", "promise"), entries("enum"))
def test_enum_has_the_official_members(module, name, promise):
    members = {member.name: member.value for member in look_up(module_of(module), name)}
    assert {member: members.get(member) for member in promise["enum"]} == promise["enum"]


@pytest.mark.parametrize(("module", "name", "promise"), entries("value"))
def test_constant_has_the_official_value(module, name, promise):
    assert plain(look_up(module_of(module), name)) == promise["value"]


@pytest.mark.parametrize("module", SURFACE["options"])
def test_command_line_has_the_official_options_and_defaults(module):
    parser: argparse.ArgumentParser = importlib.import_module(module).get_args_parser()
    known = {option: action for action in parser._actions for option in action.option_strings}
    official = SURFACE["options"][module]
    assert set(official) <= set(known)
    kept = {option: default for option, default in official.items() if f"{module}:{option}" not in DEVIATIONS}
    assert {option: plain(known[option].default) for option in kept} == kept


def test_default_configuration_has_the_official_keys_and_values():
    wrong = _config_differences(dinov2_default_config, SURFACE["config"])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", SURFACE["config_overrides"])
def test_packaged_configuration_sets_what_the_official_one_sets(name):
    overrides = SURFACE["config_overrides"][name]
    wrong = _config_differences(load_and_merge_config(name), SURFACE["config"] | overrides)
    assert not wrong, "\n".join(wrong)
    assert load_config(name), "an override that sets nothing"


def _config_differences(config: Any, official: dict[str, Any]) -> list[str]:
    wrong = []
    for key, value in official.items():
        ours: Any = config
        for part in key.split("."):
            ours = ours.get(part) if ours is not None else None
        ours = list(ours) if isinstance(value, list) else ours
        is_equal = (
            math.isclose(ours, value) if isinstance(value, float) and isinstance(ours, (int, float)) else ours == value
        )
        if not is_equal:
            wrong.append(f"{key}: {ours!r}, officially {value!r}")
    return wrong


@pytest.mark.parametrize(
    ("ours", "official", "is_accepted"),
    [
        ("(a, b=1)", "(a, b=1)", True),
        ("(a, b=1, c=2, *, d=3)", "(a, b=1)", True),
        ("(a, b=1)", "(*, a, b=1)", True),
        ("(a=0)", "(a)", True),
        ("(b, a)", "(a, b)", False),
        ("(a, b=2)", "(a, b=1)", False),
        ("(a, *, b=1)", "(a, b=1)", False),
        ("(a, c)", "(a)", False),
        ("(a, *, c)", "(a)", False),
        ("(a)", "(a, **kwargs)", False),
        ("(a, **kwargs)", "(a, b=1)", False),
        ("(x)", "(a, /)", True),
        ("()", "(a, /)", False),
    ],
)
def test_the_comparison_itself_tells_compatible_signatures_from_others(ours, official, is_accepted):
    assert (not differences(parse_signature(ours), parse_signature(official))) == is_accepted
