"""What every scenario needs: running contenders in turns, costs, tables, results, plots."""
