"""What vLLM's environment needs on its path to have this package, its gate included.

The environment is kept between versions of the package, so it holds none. The sources stand on the
path in its place, beside a folder with what an installed package says of itself: entry points are
how vLLM finds its plugins.
"""

import tomllib
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]


def package_path(folder: Path) -> str:
    """Write what an installed package says of itself, and give the path.

    Args:
        folder: An empty folder that stays as long as the path is used.
    """
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = folder / f"conviction-{project['version']}.dist-info"
    said.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: conviction\nVersion: {project['version']}\n"
    (said / "METADATA").write_text(metadata, encoding="utf-8")
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items()), ""]
    (said / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return f"{folder}:{_REPOSITORY / 'src'}"
