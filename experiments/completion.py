"""Completion of the shell, written from the commands' own tables of flags.

eval "$(parallax completion bash)"     in ~/.bashrc; zsh in ~/.zshrc
"""

from collections.abc import Sequence

from parallax.commands.listing import KINDS
from parallax.experiments.launch import command_module
from parallax.requests.option import described

SHELLS = ("bash", "zsh")

_SCRIPT = """_parallax() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words="{commands} list completion --version --help"
  if [ "$COMP_CWORD" -gt 1 ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
      *) words="" ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2>/dev/null ;; esac
}}
complete -o default -F _parallax parallax
"""


def completion(shell: str, commands: Sequence[str]) -> str:
    """Return a script that completes commands, flags and kinds of lists in a shell of SHELLS."""
    words = {name: [*_flags(name), "--help"] for name in commands}
    words |= {"list": list(KINDS), "completion": list(SHELLS)}
    cases = "\n".join(f'      {name}) words="{" ".join(of)}" ;;' for name, of in words.items())
    before = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return before + _SCRIPT.format(commands=" ".join(commands), cases=cases)


def _flags(name: str) -> list[str]:
    listed = described(command_module(name).Flags)
    return [f"--{one.flag}" + "=" * (one.option.kind != "switch") for one in listed]
