"""Which images of a manifest an expression such as `view == 'VD' and label.effusion >= 0` chooses.

The expression is read by Python's parser, but nothing of it is ever run: a handful of node kinds become a `pyarrow.compute`
expression over the columns, and every other one is refused. Used by `VetStudies:where=...` and by `vetdino filter`.
"""

import ast
import functools
import operator
from collections.abc import Callable
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.errors import UserError
from vet_extensions.manifest.io import Manifest

MAX_CHARACTERS = 20_000
MAX_DEPTH = 40

GRAMMAR = (
    "Allowed: column names (label.<finding> for labels, col('any name') for names with spaces), texts in quotes, numbers, "
    "== != < <= > >=, in [...], not in [...], is None, is not None, and, or, not, parentheses. "
    "Example: view == 'VD' and species == 'canine' and label.effusion >= 0"
)

_COMPARE: dict[type[ast.cmpop], Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ROW = "#row"


def where_true(manifest: Manifest, expression: str) -> Manifest:
    """The images for which the expression holds. What is not stated makes a comparison neither true nor false: `label.x != 1`
    and `not label.x == 1` both leave images without that label out; `label.x is None` chooses them.

    Errors: UserError for an expression that cannot be read, for a column that is not there, with the nearest one, and where
    text is compared with a number.
    """
    condition, used = parse(expression, schema=manifest.schema)
    columns = manifest.columns(sorted(used))
    plain = {name: _without_dictionary(columns[name]) for name in columns.column_names}
    table = pa.table({**plain, _ROW: pa.array(np.arange(manifest.n_images))})
    try:
        rows = table.filter(condition)[_ROW].to_numpy()
    except pa.ArrowException as error:
        raise UserError(f"The expression cannot be computed ({type(error).__name__}). {GRAMMAR}") from None
    return manifest.take(np.sort(rows))


def parse(expression: str, *, schema: pa.Schema) -> tuple[pc.Expression, set[str]]:
    """The condition, and the columns that it names. Errors: as `where_true`."""
    if len(expression) > MAX_CHARACTERS:
        raise UserError(f"The expression has {len(expression):,} characters; at most {MAX_CHARACTERS:,} are read.")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply, or holds a null character"
        raise UserError(f"The expression cannot be read: {reason}. {GRAMMAR}") from None
    reader = _Reader(schema)
    return reader.condition(tree.body, 0), reader.used


def _without_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


class _Reader:
    """Turns the nodes of one expression into conditions on the columns of `schema`; `used` gathers their names."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self.used: set[str] = set()

    def condition(self, node: ast.expr, depth: int) -> pc.Expression:
        if depth > MAX_DEPTH:
            raise UserError(
                f"The expression is nested more than {MAX_DEPTH} deep. Write it flatter; `in [...]` may help."
            )
        if isinstance(node, ast.BoolOp):
            parts = [self.condition(value, depth + 1) for value in node.values]
            return functools.reduce(operator.and_ if isinstance(node.op, ast.And) else operator.or_, parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand, depth + 1)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            links = [self._link(left, op, right) for left, op, right in zip(sides, node.ops, sides[1:])]
            return functools.reduce(operator.and_, links)
        raise _refused(node)

    def _link(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise UserError("`is` asks only whether something is stated: write `is None` or `is not None`.")
            missing = pc.field(self._column(left)).is_null()
            return missing if isinstance(op, ast.Is) else ~missing
        if isinstance(op, ast.In | ast.NotIn):
            return self._among(left, op, right)
        if _is_name(left) and _is_name(right):
            names = self._column(left), self._column(right)
            self._same_kind(names[0], self._is_text(names[1]), names[1])
            return _COMPARE[type(op)](pc.field(names[0]), pc.field(names[1]))
        if _is_name(left):
            return _COMPARE[type(op)](pc.field(self._column(left)), self._literal(right, self._column(left)))
        if _is_name(right):
            return _COMPARE[type(op)](self._literal(left, self._column(right)), pc.field(self._column(right)))
        raise UserError(f"`{_shown(left)}` is compared with `{_shown(right)}`: neither is a column. {GRAMMAR}")

    def _among(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        name = self._column(left)
        if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not right.elts:
            raise UserError(f"After `in` a list is needed, for example {name} in ['VD', 'DV']; got `{_shown(right)}`.")
        values = [self._value(item, name) for item in right.elts]
        column = pc.field(name)
        kind = pa.string() if self._is_text(name) else pa.float64()
        found = (column if self._is_text(name) else column.cast(pa.float64())).isin(pa.array(values, kind))
        # isin calls null "not among them"; here it is neither.
        return (found if isinstance(op, ast.In) else ~found) & column.is_valid()

    def _column(self, node: ast.expr) -> str:
        name = _name_of(node)
        if name is None:
            raise _refused(node)
        if name not in self._schema.names:
            near = get_close_matches(name, self._schema.names, n=1, cutoff=0.5)
            guess = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(f"There is no column '{name}'.{guess} Columns: {', '.join(self._schema.names)}.")
        self.used.add(name)
        return name

    def _is_text(self, name: str) -> bool:
        return pa.types.is_string(self._schema.field(name).type)

    def _literal(self, node: ast.expr, name: str) -> pc.Expression:
        return pc.scalar(self._value(node, name))

    def _value(self, node: ast.expr, name: str) -> str | float:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, node = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
            if not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
                raise _refused(node)
        value = node.value if isinstance(node, ast.Constant) else None
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise _refused(node)
        self._same_kind(name, isinstance(value, str), repr(value))
        if isinstance(value, str):
            return value
        if abs(value) >= 2**53:
            raise UserError(f"The number {_shown(node)} is beyond what a column holds (2**53).")
        return sign * value

    def _same_kind(self, name: str, is_text: bool, other: str) -> None:
        if self._is_text(name) != is_text:
            kinds = ("text", "a number") if self._is_text(name) else ("a number", "text")
            raise UserError(f"'{name}' is {kinds[0]} and cannot be compared with {other[:60]}, which is {kinds[1]}.")


def _is_name(node: ast.expr) -> bool:
    return _name_of(node) is not None


def _name_of(node: ast.expr) -> str | None:
    """The column that a node names: name, label.finding or col('any text'); None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    is_col = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "col"
    if is_col and len(node.args) == 1 and not node.keywords:
        only = node.args[0]
        return only.value if isinstance(only, ast.Constant) and isinstance(only.value, str) else None
    return None


def _shown(node: ast.expr) -> str:
    try:
        text = ast.unparse(node)
    except RecursionError:
        text = "..."
    return text if len(text) <= 60 else text[:57] + "..."


def _refused(node: ast.expr) -> UserError:
    hint = " A text needs quotes, and a bare name is no condition." if _is_name(node) else ""
    return UserError(f"`{_shown(node)}` is not understood here.{hint} {GRAMMAR}")
