"""The reference agent: a research society in LangGraph, its tasks, its rewards, and the runner of rollouts."""
