"""Members of a registry: built in, or brought by an installed package."""

from importlib.metadata import EntryPoint, EntryPoints
from types import SimpleNamespace

import pytest

from conviction import registry
from conviction.errors import MissingExtraError, PluginError, UnknownNameError
from conviction.registry import Registry

GROUP = "conviction.shapes"


def point(name: str, value: str, package: str) -> EntryPoint:
    made = EntryPoint(name, value, GROUP)
    vars(made)["dist"] = SimpleNamespace(name=package)
    return made


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Registry:
    installed = EntryPoints(
        (
            point("list", "builtins:list", "lists"),
            point("broken", "a_module_that_is_not_there:Broken", "shards"),
            point("twice", "builtins:str", "one"),
            point("twice", "builtins:int", "other"),
            point("dict", "builtins:list", "thieves"),
            point("set", "conviction.an_older_place:Set", "conviction"),
            point("extra", "conviction_tests_extra:Thing", "extras"),
        )
    )
    monkeypatch.setattr(registry, "entry_points", installed.select)
    registry._plugins.cache_clear()
    return Registry(GROUP, "shape", {"dict": "builtins:dict", "set": "builtins:set"})


def test_built_in_members_and_those_of_packages_are_listed_and_found(shapes: Registry) -> None:
    assert shapes.names() == ("broken", "dict", "extra", "list", "set", "twice")
    assert shapes.get("set") is set
    assert shapes.get("list") is list


def test_a_built_in_member_is_one_more_line_in_the_table(shapes: Registry) -> None:
    shapes.builtin["tuple"] = "builtins:tuple"
    assert "tuple" in shapes.names()
    assert shapes.get("tuple") is tuple


def test_an_unknown_name_gets_a_suggestion_and_the_list(shapes: Registry) -> None:
    with pytest.raises(UnknownNameError) as caught:
        shapes.get("lists")
    assert str(caught.value).startswith("unknown shape 'lists'. Did you mean 'list'? Known: broken")
    assert caught.value.problem == "unknown shape 'lists'"


def test_a_package_that_fails_to_import_is_named_with_its_error(shapes: Registry) -> None:
    words = r"shape 'broken' of the package 'shards': ModuleNotFoundError: .*a_module_that_is"
    with pytest.raises(PluginError, match=words):
        shapes.get("broken")


def test_a_name_that_two_packages_bring_is_refused_and_both_are_named(shapes: Registry) -> None:
    with pytest.raises(PluginError, match="shape 'twice': one, other"):
        shapes.get("twice")
    with pytest.raises(PluginError, match="shape 'dict': conviction, thieves"):
        shapes.get("dict")


def test_a_package_may_say_itself_which_extra_is_missing(
    shapes: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: EntryPoint) -> object:
        raise MissingExtraError(tried="use extra", found="no extra", remedy="Install it.")

    monkeypatch.setattr(EntryPoint, "load", load)
    with pytest.raises(MissingExtraError):
        shapes.get("extra")


def test_a_member_of_the_wrong_type_is_refused(shapes: Registry) -> None:
    assert shapes.subclass("list", list) is list
    with pytest.raises(PluginError, match=r"<class 'list'> is not a subclass of builtins\.dict"):
        shapes.subclass("list", dict)
