"""The HEAR benchmark, run by its official validator and evaluation kit, in one command.

The kit (heareval, hearvalidator) is installed as published and not changed.

facts         what HEAR published: its 19 tasks, the leaderboard, how scores are normalised
environment   the virtual environment that the kit is installed into
startup       runs inside it: what the kit needs to work with current libraries
tasks         folders of HEAR tasks: their layout, and resampling them
plan          a task that is to be written, and writing it
sources       reads class folders and CSV files as the clips of a task
recipes       builds tasks by name: ESC-10, spoken digits, an event task
models        what can be scored: zoo models, checkpoints, any HEAR module
jobs          one model on one task: embeddings, then predictions; can be resumed
run           many jobs at once, with progress
report        turns scores into tables and JSON
plots         draws the paper's figures 1 and 2
cli           the commands
"""
