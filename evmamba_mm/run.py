"""Runs a stock tool of a toolbox, as a process of its own.

python -m evmamba_mm.run TOOL ARGUMENTS

TOOL is a script, or one of an installed toolbox by its path in the toolbox's
tools/, such as mmdet/analysis_tools/browse_dataset.py. The tools of mmdet and
mmseg import mmcv's ops, or build a backbone, before anything can import this
package.
"""

import runpy
import sys
from importlib import util
from pathlib import Path


def find_tool(name: str) -> Path:
    """Return the script of a name.

    Raises:
        ValueError: If there is neither such a file nor such a tool.
    """
    if Path(name).is_file():
        return Path(name)
    package, _, rest = name.partition('/')
    spec = util.find_spec(package) if package.isidentifier() else None
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        # A wheel has the tools in .mim, a checkout beside the package.
        for tools in (Path(place, '.mim', 'tools'), Path(place, '../tools')):
            if (tools / rest).is_file():
                return tools / rest
    raise ValueError(
        f'there is no file {name}, and no tool of that name; give a script, '
        'or TOOLBOX/PATH as in mmdet/analysis_tools/browse_dataset.py'
    )


def main(argv: list[str]) -> int:
    """Run the tool that the first argument names, with the others."""
    if not argv or argv[0] in ('-h', '--help'):
        print(__doc__.strip())
        return 0 if argv else 2
    try:
        tool = find_tool(argv[0])
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    sys.argv = [str(tool), *argv[1:]]
    # As python does for a script, in the place of this module's folder.
    sys.path[0] = str(tool.parent.resolve())
    runpy.run_path(str(tool), run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
