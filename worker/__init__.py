"""Everything that delivers: queue, scheduler, workers, network, configuration, commands."""
