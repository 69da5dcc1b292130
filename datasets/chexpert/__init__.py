"""CheXpert: chest X-rays with fourteen observations that a labeller found in their reports."""

from datasets.chexpert.builder import ChexpertWeak as ChexpertWeak
