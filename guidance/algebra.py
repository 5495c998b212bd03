"""Reading the algebra of `on` from text: numbers, + - * & | ~, brackets, and on(attribute=value, ...)."""

import ast
import operator
from collections.abc import Callable
from typing import Any

from guidance.errors import UserError
from guidance.guide import Compose, on
from guidance.logic import Complement, Either

Meant = Compose | Either | Complement

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.UAdd: lambda a: a,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
}

NUMBERS = {ast.Mult: (1, 2), ast.Add: (0, 2), ast.Sub: (0, 2)}
"""How many of the two operands may be numbers, where that is not none."""


def read(text: str) -> Meant:
    """A composition, e.g. of "2*on(digit=3) - 1*on(digit=8)", an OR or a complement. UserError says what in the text is not understood."""
    try:
        tree = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f'guidance.terms={text!r} cannot be read; write e.g. "2*on(digit=3) - on(digit=8)"') from None

    def refuse(node: ast.AST) -> UserError:
        return UserError(f"guidance.terms: {ast.unparse(node)!r} is not understood; write numbers, + - * & | ~ and on(attribute=value)")

    def literal(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):  # on(stroke=bold), as on the command line
            return node.id
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError):
            raise refuse(node) from None

    def value(node: ast.expr) -> Meant | float:
        match node:
            case ast.Constant(value=bool()):
                raise refuse(node)
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Call(func=ast.Name(id="on"), args=[], keywords=keywords) if all(k.arg for k in keywords):
                return on(**{str(k.arg): literal(k.value) for k in keywords})
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                a = value(operand)
                if not (isinstance(op, ast.Invert) and isinstance(a, float)):
                    return applied(node, op, a)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                a, b = value(left), value(right)
                numbers = isinstance(a, float) + isinstance(b, float)
                if numbers in NUMBERS.get(type(op), (0,)):
                    return applied(node, op, a, b)
        raise refuse(node)

    def applied(node: ast.expr, op: ast.operator | ast.unaryop, *operands: Meant | float) -> Meant | float:
        try:
            result: Meant | float = OPERATORS[type(op)](*operands)
        except UserError as error:
            raise UserError(f"guidance.terms: {ast.unparse(node)}: {error}") from None
        return result

    result = value(tree)
    if isinstance(result, float):
        raise UserError(f"guidance.terms={text} names no condition; write e.g. 2*on(digit=3)")
    return result
