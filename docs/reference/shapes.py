"""For the site: the shapes in signatures as they are written, Float[Tensor, "b *d"], which are read as products otherwise."""

from typing import Any

import griffe


class Shapes(griffe.Extension):
    """Makes strings of what was read as an expression within jaxtyping's brackets."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        for parameter in func.parameters:
            mend(parameter.annotation)
        mend(func.returns)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        mend(attr.annotation)
        mend(attr.value)


def mend(expression: Any) -> None:
    if not isinstance(expression, griffe.Expr):
        return
    for part in expression.iterate(flat=False):
        if part is not expression:  # a name's only part is the name
            mend(part)
    if isinstance(expression, griffe.ExprSubscript) and expression.canonical_path.startswith("jaxtyping."):
        parts: Any = expression.slice
        text = str(parts.elements[1]).strip("'\"").replace(" * ", " *")
        parts.elements[1] = f'"{text}"'
