"""CheXpert: chest X-rays with fourteen observations labelled automatically from their reports."""

from datasets.chexpert.builder import ChexpertWeak as ChexpertWeak
