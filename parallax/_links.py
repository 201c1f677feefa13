"""The check for a checkout without symbolic links, which would fail as a missing module."""

from pathlib import Path

LINKED_FOLDERS = ("experiments", "kernels", "meshes")


def refuse_text_links(package: Path) -> None:
    """Raise ImportError if git wrote a linked folder of the package as a text file.

    Args:
      package: the folder of the `parallax` package.

    Raises:
      ImportError: a linked folder is a file.
    """
    for name in LINKED_FOLDERS:
        if (package / name).is_file():
            raise ImportError(
                f"{package / name} is a text file, expected a link to ../{name}: git checked the "
                "links out as text. Run in the repository: git config core.symlinks true && "
                "git checkout -- parallax"
            )
