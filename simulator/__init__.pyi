from simulator.base.errors import LostError, UserError
from simulator.base.trust import allow_code
from simulator.commands.catalogue import list_kinds
from simulator.commands.check import check
from simulator.commands.execute import execute
from simulator.commands.plan import plan, plan_training
from simulator.commands.report import build_report, load_results, write_results
from simulator.commands.run import run
from simulator.commands.schema import describe_keys, make_schema
from simulator.commands.sweep import sweep
from simulator.commands.train import train
from simulator.config.capacity import Question
from simulator.lab.commands.validate import validate
from simulator.lab.results.scores import Scoreboard
from simulator.results.answer import Answer
from simulator.results.executed import Executed
from simulator.results.folder import Results, describe_columns
from simulator.results.sweep import Sweep
from simulator.results.training import TrainingResults
from simulator.results.training_answer import TrainingAnswer
from simulator.scenario.jobs import load_question, load_scenario
from simulator.scenario.scenario import Scenario

__version__: str

__all__ = [
    "Answer",
    "Executed",
    "LostError",
    "Question",
    "Results",
    "Scenario",
    "Scoreboard",
    "Sweep",
    "TrainingAnswer",
    "TrainingResults",
    "UserError",
    "__version__",
    "allow_code",
    "build_report",
    "check",
    "describe_columns",
    "describe_keys",
    "execute",
    "list_kinds",
    "load_question",
    "load_results",
    "load_scenario",
    "make_schema",
    "plan",
    "plan_training",
    "run",
    "sweep",
    "train",
    "validate",
    "write_results",
]
