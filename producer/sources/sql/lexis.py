"""Where ``:named`` parameters are in SQL text, as each database reads it: not in strings, quoted names and comments.

See https://www.postgresql.org/docs/current/sql-syntax-lexical.html, https://dev.mysql.com/doc/refman/en/literals.html,
https://mariadb.com/kb/en/string-literals/ and https://www.sqlite.org/lang_expr.html. What is open at the end of the
text is taken as closed there. The settings that change the reading (``standard_conforming_strings``, ``sql_mode``) are
pinned by the dialects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

#: How a text is read. PostgreSQL: E'' strings with backslashes, $tag$ strings, nested comments, slices of arrays.
#: MySQL: backslashes in all strings, "" as a string, # comments. SQLite: neither; [a name] in brackets.
Lexis = Literal["postgres", "mysql", "sqlite"]

_NAME = r"[^\W\d][\w$]*"
_PARAMETER = r"(?P<parameter>:(?P<name>[^\W\d]\w*))"
_QUOTED = r"""' (?:[^']|'')* (?:'|\Z) | " (?:[^"]|"")* (?:"|\Z)"""
_TOKENS = {
    "postgres": rf"""
        (?P<blank>\s+ | --[^\n\r]*) | /\*
      | (?P<operand>[eE]' (?:[^'\\]|\\.|'')* (?:'|\Z) (?: \s*\n\s* ' (?:[^'\\]|\\.|'')* (?:'|\Z) )*
        | {_QUOTED} | \$(?P<tag>(?:[^\W\d]\w*)?)\$ .*? (?:\$(?P=tag)\$|\Z) | {_NAME} | \$?\d[\w.$]* | [)\]])
      | :: | := | {_PARAMETER} | .""",
    "mysql": rf"""
        (?P<blank>\s+ | --(?=[\s\x00-\x1f]|\Z)[^\n]* | \#[^\n]* | /\*M?!\d* | /\*.*?(?:\*/|\Z))
      | (?P<operand>' (?:[^'\\]|\\.|'')* (?:'|\Z) | " (?:[^"\\]|\\.|"")* (?:"|\Z) | ` (?:[^`]|``)* (?:`|\Z)
        | [\w$]+ | [)\]])
      | := | {_PARAMETER} | .""",
    "sqlite": rf"""
        (?P<blank>\s+ | --[^\n]* | /\*.*?(?:\*/|\Z))
      | (?P<operand>{_QUOTED} | ` (?:[^`]|``)* (?:`|\Z) | \[[^\]]*(?:\]|\Z) | {_NAME} | \d[\w.]* | [)])
      | :: | := | {_PARAMETER} | .""",
}
_PATTERNS = {lexis: re.compile(pattern, re.VERBOSE | re.DOTALL) for lexis, pattern in _TOKENS.items()}
_NESTED = re.compile(r"/\*|\*/")
_WORDS = """
all and any between by case distinct else escape from having ilike in is like limit not offset on or select similar some
then to when where
"""
#: Words after which a value is expected: what follows them in brackets is no end of a slice.
_KEYWORDS = frozenset(_WORDS.split())


def parameters(sql: str, lexis: Lexis) -> Iterator[tuple[int, int, str]]:
    """Where each parameter begins and ends, and its name.

    A colon right after a name or a number begins none, nor does the colon of a slice: ``a[low:high]``, ``a[1 :high]``.
    """
    pattern = _PATTERNS[lexis]
    at, brackets = 0, 0
    ended = -1  # where the last operand ended
    is_operand = False  # whether the last token, blanks aside, was one
    while (match := pattern.match(sql, at)) is not None:
        at = match.end()
        if match["parameter"] is not None:
            if ended == match.start() or (is_operand and brackets):
                ended = at  # of a slice: what follows the colon is an operand itself
            else:
                yield match.start(), at, match["name"]
                ended = at
            is_operand = True
        elif match[0] == "/*" and lexis == "postgres":
            at = _end_of_comment(sql, at)
        elif match["blank"] is None:
            text = match[0]
            is_operand = match["operand"] is not None and text.lower() not in _KEYWORDS
            ended = at if match["operand"] is not None else -1
            brackets += (text == "[") - (text == "]" and brackets > 0)


def _end_of_comment(sql: str, at: int) -> int:
    """The end of a comment that holds others, and whose beginning ends at `at`."""
    depth = 1
    for match in _NESTED.finditer(sql, at):
        depth += 1 if match[0] == "/*" else -1
        if not depth:
            return match.end()
    return len(sql)
