"""The part of the table of what must never be that is about nodes that are emptied: by whom, when, and how many."""

from __future__ import annotations

from tests.integration.never import Never, closed_beside

NEVER_EMPTYING = (
    *(
        Never(
            f"two evacuations of one node, one {state}",
            "evacuation",
            "uq_evacuation_one_open",
            {},
            (*closed_beside("state", "cancelled", "restored"), ({}, {"node_id": 1})),
            {"state": state},
            "evacuation.node_id",
        )
        for state in ("planned", "running", "paused", "blocked", "drained", "restoring")
    ),
    Never(
        "a window of no time",
        "maintenance_window",
        "ck_maintenance_window_duration",
        {"duration_s": 0.0},
        (({}, {"duration_s": 0.1}),),
    ),
    Never(
        "two tokens of one name",
        "api_token",
        "uq_api_token_name",
        {"digest": "e"},
        (({}, {"name": "other"}),),
        {},
        "api_token.name",
    ),
    Never(
        "two tokens that are one",
        "api_token",
        "uq_api_token_digest",
        {"name": "other"},
        (({}, {"digest": "e"}),),
        {},
        "api_token.digest",
    ),
    Never(
        "two things to do for one alert",
        "alert_rule",
        "uq_alert_rule_alertname",
        {},
        (({}, {"alertname": "Other"}),),
        {},
        "alert_rule.alertname",
    ),
    Never(
        "one alert that fires twice",
        "alert",
        "uq_alert_one_firing",
        {},
        (({}, {"fingerprint": "g"}), ({"state": "resolved"}, {})),
        {},
        "alert.fingerprint",
    ),
    Never(
        "a window of nothing",
        "maintenance_window",
        "ck_maintenance_window_node_or_group",
        {"node_id": None},
        (({}, {"group_id": 1}), ({}, {"node_id": 1})),
    ),
    Never(
        "a window of a node and of a group",
        "maintenance_window",
        "ck_maintenance_window_node_or_group",
        {"group_id": 1},
        (({}, {"node_id": None}), ({}, {"group_id": None})),
    ),
    Never(
        "a window that holds for less than no time",
        "maintenance_window",
        "ck_maintenance_window_hold",
        {"hold_s": -0.1},
        (({}, {"hold_s": 0.0}), ({}, {"hold_s": None})),
    ),
    Never(
        "two groups of one name",
        "node_group",
        "uq_node_group_name",
        {},
        (({}, {"name": "other"}),),
        {},
        "node_group.name",
    ),
    Never(
        "a group of which none may be out",
        "node_group",
        "ck_node_group_max_at_once",
        {"max_at_once": 0},
        (({}, {"max_at_once": 1}),),
    ),
    *(
        Never(
            f"two rolls of one group, one {state}",
            "roll",
            "uq_roll_one_open",
            {},
            closed_beside("state", "done", "cancelled"),
            {"state": state},
            "roll.group_id",
        )
        for state in ("running", "paused")
    ),
    Never(
        "a roll of no group that is open",
        "roll",
        "ck_roll_open_has_group",
        {"group_id": None},
        (({}, {"state": "done"}), ({}, {"state": "cancelled"}), ({}, {"group_id": 1})),
    ),
    Never(
        "a roll that holds for less than no time",
        "roll",
        "ck_roll_hold",
        {"hold_s": -0.1},
        (({}, {"hold_s": 0.0}), ({}, {"hold_s": None})),
    ),
    Never(
        "a node that is out by no evacuation",
        "roll_node",
        "ck_roll_node_out_by_evacuation",
        {"evacuation_id": None},
        tuple(({}, {"state": state}) for state in ("waiting", "done", "left_out")),
    ),
    Never(
        "two rules of one name",
        "placement_rule",
        "uq_placement_rule_name",
        {},
        (({}, {"name": "other"}),),
        {},
        "placement_rule.name",
    ),
)
