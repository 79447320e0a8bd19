"""The page of a folder of ``moesim claims``."""

from simulator.lab.report.claims_page import render
from simulator.lab.results.claims import ClaimsResults as Results

__all__ = ["Results", "render"]
