"""Reading the algebra of `on` from text: numbers, + - *, brackets, and on(attribute=value, ...)."""

import ast
from typing import Any

from guidance.errors import UserError
from guidance.guide import Compose, on


def read(text: str) -> Compose:
    """A composition, e.g. of "2*on(digit=3) - 1*on(digit=8)". UserError says what in the text is not understood."""
    try:
        tree = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f'guidance.terms={text!r} cannot be read; write e.g. "2*on(digit=3) - on(digit=8)"') from None

    def refuse(node: ast.AST) -> UserError:
        return UserError(f"guidance.terms: {ast.unparse(node)!r} is not understood; write numbers, + - * and on(attribute=value)")

    def literal(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):  # on(stroke=bold), as on the command line
            return node.id
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError):
            raise refuse(node) from None

    def value(node: ast.expr) -> Compose | float:
        match node:
            case ast.Constant(value=bool()):
                raise refuse(node)
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Call(func=ast.Name(id="on"), args=[], keywords=keywords) if all(k.arg for k in keywords):
                return on(**{str(k.arg): literal(k.value) for k in keywords})
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return value(operand)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as op, right=right):
                a, b = value(left), value(right)
                if isinstance(op, ast.Mult) and isinstance(a, float):
                    return a * b
                if isinstance(op, ast.Mult) and isinstance(b, float):
                    return a * b
                if isinstance(op, ast.Add | ast.Sub):
                    sign = 1.0 if isinstance(op, ast.Add) else -1.0
                    if isinstance(a, float) and isinstance(b, float):
                        return a + sign * b
                    if isinstance(a, Compose) and isinstance(b, Compose):
                        return a + sign * b
        raise refuse(node)

    result = value(tree)
    if not isinstance(result, Compose):
        raise UserError(f"guidance.terms={text} names no condition; write e.g. 2*on(digit=3)")
    return result
