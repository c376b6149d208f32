"""References to a layer that a network keeps outside its registered modules.

A network may hold a layer a second time in a list or a dictionary, as a bound method such as
`self.fc.forward`, or in a function that it calls. After a replacement these would still compute
with the old layer, without a quadratic term.
"""

import contextlib
import functools
import weakref
from collections import deque
from collections.abc import Callable, Collection, MutableMapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from quadranas.errors import QuadranasError

SKIPPED = (str, bytes, int, float, complex, type, ModuleType)
REGISTERED = frozenset(("_modules", "_parameters", "_buffers"))

Swap = Callable[[nn.Module], nn.Module]


def redirect(model: nn.Module, old: nn.Module, new: nn.Module, name: str) -> None:
    """Let all further references of a network to an old layer refer to the new one.

    Args:
        name: path of the layer, for messages.

    Raises:
        QuadranasError: a function refers to the layer, which cannot be changed; or the network
            refers to a weight of the layer without the layer.
    """
    weights = {id(weight) for weight in old.parameters()}
    _walk(model, lambda module: new if module is old else module, name, weights)


def check_functions(model: nn.Module, names: Collection[str], original: nn.Module) -> None:
    """Check that no function in a copy of a network computes with layers of the original.

    Copying a network does not copy the functions in it.

    Args:
        names: paths of the layers that are about to be replaced.

    Raises:
        QuadranasError: names the first such layer.
    """
    modules = dict(original.named_modules(remove_duplicate=False))
    around: dict[int, str] = {}
    for name in names:
        parts = name.split(".")
        for length in range(len(parts) + 1):
            module = modules.get(".".join(parts[:length]))
            if module is not None:
                around.setdefault(id(module), name)

    def refuse(module: nn.Module) -> nn.Module:
        if id(module) in around:
            raise _refusal(around[id(module)])
        return module

    _walk(model, refuse, "")


def _walk(model: nn.Module, swap: Swap, name: str, weights: Collection[int] = frozenset()) -> None:
    modules = list(model.modules())
    walk = _Walk(swap, name, {id(module): module for module in modules}, weights)
    for module in modules:
        attributes = vars(module)
        # Hooks observe; the layers whose own hooks compute something are not replaced.
        own = {k: v for k, v in attributes.items() if k not in REGISTERED and "_hooks" not in k}
        for key, value in own.items():
            if (swapped := walk.visit(value)) is not value:
                attributes[key] = swapped


class _Walk:
    """A walk through the objects that modules refer to.

    Args:
        swap: the module to refer to instead of a given one.
        name: path of the layer, for messages.
        registered: the network's modules by their identity; each is walked through once.
        weights: identities of the tensors that nothing may refer to.
    """

    def __init__(
        self,
        swap: Swap,
        name: str,
        registered: dict[int, nn.Module],
        weights: Collection[int],
    ) -> None:
        self.swap, self.name, self.registered, self.weights = swap, name, registered, weights
        self.visited: dict[int, tuple[Any, Any]] = {}

    def visit(self, value: Any) -> Any:
        """The object to use instead of `value`; `value` itself if nothing in it is replaced."""
        if value is None or isinstance(value, SKIPPED):
            return value
        if isinstance(value, Tensor):
            if id(value) in self.weights:
                raise _refusal(self.name, "with a reference to its weight")
            return value
        if isinstance(value, nn.Module) and (swapped := self.swap(value)) is not value:
            return swapped
        if id(value) in self.registered:
            return value
        if id(value) not in self.visited:
            self.visited[id(value)] = (value, value)  # it may refer to itself
            self.visited[id(value)] = (value, self._inside(value))
        return self.visited[id(value)][1]

    def _inside(self, value: Any) -> Any:
        if isinstance(value, MutableMapping | list | deque):
            self._items(value)
        elif isinstance(value, tuple | set | frozenset):
            items = [self.visit(item) for item in value]
            if any(new is not old for new, old in zip(items, value, strict=True)):
                fields = hasattr(value, "_fields")  # a named tuple
                return type(value)(*items) if fields else type(value)(items)
        elif isinstance(value, MethodType):
            owner = self.visit(value.__self__)
            return value if owner is value.__self__ else getattr(owner, value.__name__)
        elif isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            func, args, keywords = (self.visit(part) for part in parts)
            if func is not value.func or args is not value.args:
                return functools.partial(func, *args, **keywords)
        elif isinstance(value, weakref.ReferenceType):
            target = self.visit(value())
            return value if target is value() else weakref.ref(target)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif hasattr(value, "__dict__"):
            self._items(vars(value))
        return value

    def _items(self, container: Any) -> None:
        pairs = container.items() if isinstance(container, MutableMapping) else container
        keyed = pairs if isinstance(container, MutableMapping) else enumerate(pairs)
        for key, item in list(keyed):
            if (swapped := self.visit(item)) is not item:
                container[key] = swapped

    def _function(self, function: FunctionType) -> None:
        """A function is shared with the original network, so it is not changed."""
        values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # a cell without a value
                values.append(cell.cell_contents)
        if any(self.visit(value) is not value for value in values):
            raise _refusal(self.name)


def _refusal(name: str, how: str = "in a function of its own") -> QuadranasError:
    return QuadranasError(
        f"the network computes layer {name!r} {how}, which would go on using "
        "the layer without its quadratic term",
        "Call the layer as a module (self.layer(x)), or exclude it with select= or where=.",
    )
