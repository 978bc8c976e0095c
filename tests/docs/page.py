"""The fenced blocks of a page, in order."""

import re
from dataclasses import dataclass

_FENCE = re.compile(r'^```(\w+)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_FILE_NAME = re.compile(r'# (\S+\.py)\n')


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first fence, from 1."""

    language: str
    text: str
    line: int

    @property
    def file_name(self):
        """The name in the first line of a Python block."""
        match = _FILE_NAME.match(self.text)
        if match is None:
            raise ValueError(
                f'the block in line {self.line} does not begin with a comment '
                f'that names its file'
            )
        return match[1]


def read_blocks(path):
    text = path.read_text()
    return [
        Block(match[1], match[2], text.count('\n', 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]
