//! Translates the growth by route into its document, and back.

use super::documents::{RouteDoc, millis};
use crate::{supervisor::snapshot::RouteView, units::Bytes};

impl From<&RouteView> for RouteDoc {
    fn from(route: &RouteView) -> Self {
        Self {
            route: route.route.clone(),
            requests: route.requests,
            growth_bytes: route.growth.get(),
            per_request: route.per_request.get(),
            share: millis(route.share),
            certain: route.certain,
        }
    }
}

impl From<RouteDoc> for RouteView {
    fn from(route: RouteDoc) -> Self {
        Self {
            route: route.route,
            requests: route.requests,
            growth: Bytes(route.growth_bytes),
            per_request: Bytes(route.per_request),
            share: route.share,
            certain: route.certain,
        }
    }
}

#[cfg(test)]
pub(super) fn sample() -> RouteView {
    RouteView {
        route: "/users/<id>".to_owned(),
        requests: 300,
        growth: Bytes(15_360_000),
        per_request: Bytes(51_200),
        share: 0.9,
        certain: true,
    }
}
