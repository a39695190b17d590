import pytest

from controlllm.common.errors import ConfigError, ControlLLMError
from controlllm.common.registry import Registry, check_choice


def test_what_is_registered_is_found():
    registry: Registry[type] = Registry("colour")
    registry.register("red")(int)
    registry.register("blue")(str)
    assert registry.get("red") is int
    assert registry.names() == ["blue", "red"]


def test_an_unknown_name_gets_the_allowed_and_the_nearest():
    registry: Registry[type] = Registry("colour")
    registry.register("red")(int)
    with pytest.raises(ConfigError, match=r"colour='rad' .* allowed: red\. Did you mean 'red'\?"):
        registry.get("rad")


def test_an_unknown_name_may_be_one_of_the_users_own_that_is_not_registered_yet():
    registry: Registry[type] = Registry("colour")
    registry.register("red")(int)
    with pytest.raises(ConfigError) as caught:
        registry.get("teal")
    hint = "Register a name of your own first (docs/extending/index.md)."
    assert str(caught.value) == f"colour='teal' is not known; allowed: red. {hint}"


def test_a_name_is_taken_once_but_the_same_thing_may_come_again():
    registry: Registry[type] = Registry("colour")
    registry.register("red")(int)
    registry.register("red")(int)
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("red")(str)


def test_a_choice_without_a_near_name_gets_no_hint():
    with pytest.raises(ConfigError) as caught:
        check_choice("mode", 7, ["fast", "slow"])
    assert str(caught.value) == "mode=7 is not known; allowed: fast, slow."
    assert isinstance(caught.value, ControlLLMError) and isinstance(caught.value, ValueError)


def test_reserved_names_are_known_before_they_are_registered():
    registry: Registry[type] = Registry("colour", ["red"])
    registry.register("blue")(int)
    assert registry.names() == ["blue", "red"]
    registry.register("red")(str)
    assert registry.names() == ["blue", "red"] and registry.get("red") is str
