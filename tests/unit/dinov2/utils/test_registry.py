"""The registry behind the three seams, and plugins."""

import sys
import types

import pytest

from dinov2.utils.errors import UserError
from dinov2.utils.plugins import load_plugins
from dinov2.utils.registry import Registry, checked_options


def test_a_taken_name_refuses_a_second_object_but_takes_the_same_again():
    registry: Registry[object] = Registry("thing")
    registry.register("a")(len)
    registry.register("a")(len)
    with pytest.raises(UserError, match="already taken"):
        registry.register("a")(max)


def test_an_unknown_name_is_answered_with_the_known_ones():
    registry: Registry[object] = Registry("data set")
    registry.register("VetStudies")(len)
    with pytest.raises(UserError, match=r"Did you mean 'VetStudies'\?.*Known: VetStudies"):
        registry.get("VetStudy")


def test_options_of_a_named_object_are_checked():
    with pytest.raises(UserError, match="Did you mean 'weight'"):
        checked_options({"name": "x", "wieght": 1}, ["weight"], where="loss routing")
    assert checked_options({"name": "x", "weight": 1}, ["weight"], where="loss routing") == {"weight": 1}


def test_plugin_registers_and_a_missing_one_is_named(monkeypatch):
    calls = []
    module = types.ModuleType("my_plugin_of_the_test")
    module.register = lambda: calls.append(1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    load_plugins([module.__name__])
    assert calls == [1]
    with pytest.raises(UserError, match="no_such_plugin_anywhere"):
        load_plugins(["no_such_plugin_anywhere"])
