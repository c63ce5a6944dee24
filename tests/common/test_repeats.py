"""B16: an option that counts once is not given twice."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from stategate.cli.main import OLD, SECTIONS, main


def commands(group: click.Group, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command below a group."""
    found = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        here = (*words, name)
        found += commands(command, here) if isinstance(command, click.Group) else [here]
    return found


def command_of(words: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


@pytest.mark.case("B16")
@pytest.mark.parametrize("verb", [*OLD, *(name for verbs in SECTIONS.values() for name in verbs)])
def test_every_single_option_of_a_verb_is_refused_when_it_is_given_twice(verb: str) -> None:
    top = command_of((verb,))
    here = commands(top, (verb,)) if isinstance(top, click.Group) else [(verb,)]
    for words in here:
        for option in command_of(words).params:
            if not isinstance(option, click.Option) or option.multiple or option.is_flag:
                continue
            name = max(option.opts, key=len)
            result = CliRunner().invoke(main, [*words, name, "1", "one", name, "2"])
            assert result.exit_code == 2, (words, name)
            assert f"{name} is given 2 times, and only one can count" in result.output


def test_a_flag_and_an_option_that_may_be_repeated_are_taken_twice() -> None:
    assert CliRunner().invoke(main, ["zoo", "--json", "--json"]).exit_code == 0
    result = CliRunner().invoke(main, ["build-native", "nowhere", "--flag", "-O1", "--flag", "-g"])
    assert "only one can count" not in result.output


def test_a_mistyped_option_is_said_before_a_repeated_one() -> None:
    result = CliRunner().invoke(main, ["zoo", "--jsn", "--json", "--json"])
    assert result.exit_code == 2 and "No such option" in result.output
