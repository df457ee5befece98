"""HEAR for real: the official validator and evaluation kit, unmodified, in one command.

facts         the 19 tasks, the leaderboard, normalisation
environment   the kit's own virtual environment
startup       runs inside it: what the kit needs to work with current libraries
tasks         HEAR task directories: layout, resampling
plan          a task to be, and writing it
sources       class folders and CSV files -> clips of a task
recipes       ESC-10, spoken digits and an event task, by name
models        what can be judged: zoo models, checkpoints, any HEAR module
jobs          one model on one task: embeddings, then predictions; resumable
run           many jobs at once, with progress
report        scores -> tables, JSON
plots         the paper's figures 1 and 2
cli           the commands
"""
