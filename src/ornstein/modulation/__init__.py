"""Modulation: functions that change named features inside a network while it runs."""

from ornstein.networks.sites import Modulation, Site, modulated, sites

__all__ = ["Modulation", "Site", "modulated", "sites"]
