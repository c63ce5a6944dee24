"""``stategate completion``: what a shell needs to complete verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes verbs and options.

    \b
    Examples:
      stategate completion bash > ~/.local/share/bash-completion/completions/stategate
      stategate completion zsh > ~/.zfunc/_stategate
      stategate completion fish > ~/.config/fish/completions/stategate.fish
    """
    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root, {}, "stategate", "_STATEGATE_COMPLETE").source())
