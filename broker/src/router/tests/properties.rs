//! Whatever comes in: valid JSON on a valid topic, or nothing; never a panic.

use proptest::prelude::*;

use super::*;

fn cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        1 => Just(Cell::Null),
        1 => Just(Cell::Unchanged),
        1 => Just(Cell::Omitted),
        3 => ".{0,30}".prop_map(|text| Cell::Text(text.into())),
        2 => "[0-9]{1,20}|t|f|NaN|\\{1,2\\}|\\{\"a\":\n1\\}|2026-01-31 12:00:00\\+00"
            .prop_map(|text| Cell::Text(text.into())),
        1 => proptest::collection::vec(any::<u8>(), 0..30).prop_map(|bytes| Cell::Text(bytes.into())),
    ]
}

fn cells() -> impl Strategy<Value = Row> {
    proptest::collection::vec(cell(), 0..9).prop_map(Vec::into)
}

fn old() -> impl Strategy<Value = OldRow> {
    prop_oneof![cells().prop_map(OldRow::Key), cells().prop_map(OldRow::Full)]
}

fn kind() -> impl Strategy<Value = ChangeKind> {
    let t = || relation(&["a!", "b:int", "c!:json", "d:bool", "e:ints", "f:timestamptz", "g:float", "h\"\n"]);
    prop_oneof![
        cells().prop_map(move |new| ChangeKind::Insert { relation: t(), new }),
        (proptest::option::of(old()), cells()).prop_map(move |(old, new)| ChangeKind::Update {
            relation: t(),
            old,
            new
        }),
        old().prop_map(move |old| ChangeKind::Delete { relation: t(), old }),
        Just(()).prop_map(move |()| ChangeKind::Truncate { relation: t() }),
        "[ab/ ]{0,5}( once=1)?\n?[\\[\\]{}\",: 1ab\n]{0,12}"
            .prop_map(|text| ChangeKind::Message { content: text.into() }),
        proptest::collection::vec(any::<u8>(), 0..30).prop_map(|b| ChangeKind::Message { content: b.into() }),
    ]
}

fn valid(event: &Event) -> Result<(), TestCaseError> {
    prop_assert!(walcast_wire::Topic::new(event.topic.as_str()).is_ok());
    prop_assert!(!event.data.iter().any(|byte| matches!(byte, b'\n' | b'\r')));
    let json: serde_json::Value = serde_json::from_slice(&event.data)
        .map_err(|error| TestCaseError::fail(format!("{error}: {:?}", event.data)))?;
    if let Some(object) = json.as_object() {
        let named = event.unchanged.iter().chain(&event.omitted);
        prop_assert!(named.into_iter().all(|name| !object.contains_key(&**name)));
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_change_makes_valid_events_or_none(
        changes in proptest::collection::vec(kind(), 1..8),
        state in any::<bool>(),
        topic in 0..4_usize,
        when in 0..5_usize,
        event_bytes_max in prop_oneof![Just(1_usize << 20), 0..60_usize],
    ) {
        let topic = ["x/{a}", "{c}/{a}", "{b}", "x"][topic];
        let when = ["", "when = 'data.b > 3'", "when = 'data.c.a == 1 || has(old.b)'",
            "when = 'data.e.exists(x, x == old.d)'", "when = 'data.g < data.b && data.f > \"2\"'"][when];
        let toml = format!("name = 'public.vms'\ntopic = '{topic}'\nstate = {state}\n{when}");
        let router = Arc::new(Router::new(&[rule(&toml)], Config { event_bytes_max }).unwrap());
        let seeds: Vec<Row> = changes.iter().filter_map(|kind| match kind {
            ChangeKind::Insert { new, .. } => Some(new.clone()),
            _ => None,
        }).collect();
        let t = relation(&["a!", "b:int", "c!:json"]);
        for event in router.seed(&t, &seeds) {
            valid(&event)?;
        }
        for entry in route(&router, changes) {
            if let Entry::Event(event) = entry {
                valid(&event)?;
            }
        }
    }

    #[test]
    fn distinct_rows_of_a_state_rule_have_distinct_topics(
        a in "[ab/.%{} -]{1,4}", b in "[ab/.%{} -]{1,4}", c in "[ab/.%{} -]{1,4}", d in "[ab/.%{} -]{1,4}"
    ) {
        let r = router("name = 'public.vms'\ntopic = 'x-{a}/{b}'\nstate = true");
        let t = relation(&["a!", "b!"]);
        let made = route(&r, vec![insert(&t, &[&a, &b]), insert(&t, &[&c, &d])]);
        let topics: Vec<_> = made.iter().filter_map(|entry| match entry {
            Entry::Event(event) => Some(event.topic.clone()),
            Entry::ClearTable { .. } => None,
        }).collect();
        prop_assert_eq!(topics.len(), 2);
        prop_assert_eq!((&a, &b) == (&c, &d), topics[0] == topics[1]);
    }

    #[test]
    fn any_template_and_condition_is_taken_or_refused(topic in "[a{}/.%* ]{0,9}", when in "[a-z.(){}\\[\\]'= ]{0,12}") {
        let config = RuleConfig {
            name: "public.vms".into(), topic, columns: None, state: false, when: Some(when), column_list: false,
        };
        let _ = Router::new(&[config], Config::default());
    }
}
