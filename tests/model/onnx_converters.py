"""Our four transformers in ONNX, to show that models made of them convert.

Missing numbers are NaN, missing texts empty, dates whole microseconds since 1970 (the least int64 where missing).
"""

from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from skl2onnx.operator_converters.common import concatenate_variables

from mlops_nb.model.columns import MICROSECONDS_A_DAY, MISSING, OTHER, Categories, Dates, MissingFlags, Numbers

NO_TIME = np.iinfo(np.int64).min
ERAS = 10  # of 400 years each, added so that all whole-number divisions are of positive numbers


class Graph:
    """Adds nodes to a converted model and names their results."""

    def __init__(self, scope: Any, container: Any):
        self.scope, self.container = scope, container

    def constant(self, value: Any, kind: int) -> str:
        values = np.atleast_1d(value)
        name = self.scope.get_unique_variable_name("constant")
        self.container.add_initializer(name, kind, list(values.shape), values.ravel().tolist())
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = self.scope.get_unique_variable_name(kind.lower())
        self.container.add_node(
            kind, list(inputs), output, name=self.scope.get_unique_operator_name(kind), **attributes
        )
        return output

    def whole(self, kind: str, left: str, right: int) -> str:
        return self.node(kind, left, self.constant(right, TensorProto.INT64))


def same_width(operator: Any) -> None:
    width = operator.raw_operator.n_features_in_
    text = isinstance(operator.inputs[0].type, StringTensorType)
    operator.outputs[0].type = (StringTensorType if text else FloatTensorType)([None, width])


def date_width(operator: Any) -> None:
    operator.outputs[0].type = FloatTensorType([None, len(operator.raw_operator.get_feature_names_out())])


def numbers(scope: Any, operator: Any, container: Any) -> None:
    graph, fitted = Graph(scope, container), operator.raw_operator
    values = graph.node("Cast", concatenate_variables(scope, operator.inputs, container), to=TensorProto.FLOAT)
    values = graph.node("Where", graph.node("IsInf", values), graph.constant(np.nan, TensorProto.FLOAT), values)
    values = graph.node(
        "Where", graph.constant(fitted.empty_, TensorProto.BOOL), graph.constant(0.0, TensorProto.FLOAT), values
    )
    if fitted.clip:
        low, high = (graph.constant(bound, TensorProto.FLOAT) for bound in (fitted.low_, fitted.high_))
        values = graph.node("Where", graph.node("Less", values, low), low, values)
        values = graph.node("Where", graph.node("Greater", values, high), high, values)
    container.add_node("Identity", values, operator.outputs[0].full_name)


def missing_flags(scope: Any, operator: Any, container: Any) -> None:
    graph = Graph(scope, container)
    values = concatenate_variables(scope, operator.inputs, container)
    flags = graph.node("Or", graph.node("IsNaN", values), graph.node("IsInf", values))
    container.add_node("Cast", flags, operator.outputs[0].full_name, to=TensorProto.FLOAT)


def categories(scope: Any, operator: Any, container: Any) -> None:
    graph = Graph(scope, container)
    texts = concatenate_variables(scope, operator.inputs, container)
    columns = []
    for place, levels in enumerate(operator.raw_operator.levels_):
        column = graph.node("Gather", texts, graph.constant(place, TensorProto.INT64), axis=1)
        words = {"keys_strings": [*levels, ""], "values_strings": [*levels, MISSING], "default_string": OTHER}
        columns.append(graph.node("LabelEncoder", column, op_domain="ai.onnx.ml", op_version=2, **words))
    container.add_node("Concat", columns, operator.outputs[0].full_name, axis=1)


def calendar(graph: Graph, days: str) -> dict[str, str]:
    """Year, month and weekday of days since 1970, in whole numbers (Howard Hinnant's algorithm)."""
    shifted = graph.whole("Add", days, 719_468 + ERAS * 146_097)
    era = graph.whole("Div", shifted, 146_097)
    of_era = graph.node("Sub", shifted, graph.whole("Mul", era, 146_097))
    leaps = graph.node("Sub", graph.whole("Div", of_era, 36_524), graph.whole("Div", of_era, 146_096))
    without = graph.node("Add", graph.node("Sub", of_era, graph.whole("Div", of_era, 1_460)), leaps)
    year_of_era = graph.whole("Div", without, 365)
    before = graph.node("Sub", graph.whole("Div", year_of_era, 4), graph.whole("Div", year_of_era, 100))
    of_year = graph.node("Sub", of_era, graph.node("Add", graph.whole("Mul", year_of_era, 365), before))
    march_based = graph.whole("Div", graph.whole("Add", graph.whole("Mul", of_year, 5), 2), 153)
    late = graph.whole("Greater", march_based, 9)
    month = graph.node("Where", late, graph.whole("Sub", march_based, 9), graph.whole("Add", march_based, 3))
    year = graph.node("Add", year_of_era, graph.whole("Sub", graph.whole("Mul", era, 400), 400 * ERAS))
    year = graph.node("Add", year, graph.node("Cast", late, to=TensorProto.INT64))
    weekday = graph.whole("Mod", graph.whole("Add", days, 3 + 7 * 1_000_000), 7)
    return {"year": year, "month": month, "weekday": weekday}


def dates(scope: Any, operator: Any, container: Any) -> None:
    graph, fitted, parts = Graph(scope, container), operator.raw_operator, []
    every = concatenate_variables(scope, operator.inputs, container)
    for place in range(fitted.n_features_in_):
        moments = graph.node("Gather", every, graph.constant(place, TensorProto.INT64), axis=1)
        absent = graph.whole("Equal", moments, NO_TIME)
        days = graph.whole(
            "Sub",
            graph.whole("Div", graph.whole("Add", moments, ERAS * 146_097 * MICROSECONDS_A_DAY), MICROSECONDS_A_DAY),
            ERAS * 146_097,
        )
        inside = graph.node("Sub", moments, graph.whole("Mul", days, MICROSECONDS_A_DAY))
        found = calendar(graph, days)
        if fitted.has_time_[place]:
            found["hour"] = graph.whole("Div", inside, 3_600_000_000)
        since = graph.node("Cast", graph.whole("Sub", days, int(fitted.first_day_[place])), to=TensorProto.DOUBLE)
        part = graph.node("Cast", inside, to=TensorProto.DOUBLE)
        fraction = graph.node("Div", part, graph.constant(float(MICROSECONDS_A_DAY), TensorProto.DOUBLE))
        found["days"] = graph.node("Add", since, fraction)
        for name in found:
            number = graph.node("Cast", found[name], to=TensorProto.FLOAT)
            parts.append(graph.node("Where", absent, graph.constant(np.nan, TensorProto.FLOAT), number))
    container.add_node("Concat", parts, operator.outputs[0].full_name, axis=1)


def register() -> None:
    """Make the four known to skl2onnx."""
    for kind, shape, converter in (
        (Numbers, same_width, numbers),
        (MissingFlags, same_width, missing_flags),
        (Categories, same_width, categories),
        (Dates, date_width, dates),
    ):
        update_registered_converter(kind, f"MlopsNb{kind.__name__}", shape, converter)
