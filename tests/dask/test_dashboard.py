"""Clusters without a dashboard."""

from __future__ import annotations

from pathlib import Path

from dask_sites import open_site


async def test_clusters_without_a_dashboard_leave_its_usual_port_free(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        # A second one on the same port would be warned of.
        async with site.cluster(0, dashboard_address=None) as first, site.cluster(0, dashboard_address=None) as second:
            for cluster in (first, second):
                assert cluster.scheduler is not None
                assert cluster.scheduler.http_server.port != 8787
