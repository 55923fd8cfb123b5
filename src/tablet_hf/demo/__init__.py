"""`tablet-hf demo`: from nothing to a prediction in minutes, on a simulated cohort and without a network."""

from tablet_hf.demo.run import DemoResult, DemoSettings, run_demo

__all__ = ["DemoResult", "DemoSettings", "run_demo"]
