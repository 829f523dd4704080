"""Tasks by name."""

from __future__ import annotations

from qunlearn.registry import Registry
from qunlearn.tasks.base import Batch, Task
from qunlearn.tasks.classification import Classification

TASKS: Registry[type[Task]] = Registry("task")
TASKS.register("classification", Classification)


def get(name: str) -> Task:
    """An instance of the registered task; an unknown name is a ConfigError that lists the known ones."""
    return TASKS[name]()


__all__ = ["TASKS", "Batch", "Classification", "Task", "get"]
