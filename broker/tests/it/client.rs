//! Our own client against the real HTTP side: the three transports tell one story.

use walcast::{hub, transport::Config};
use walcast_client::{After, Client, EventsRequest, Message, Stream, Transport};
use walcast_wire::Op;

use crate::edge::{Edge, message};
use crate::wait::within;

async fn event(stream: &mut Stream) -> (String, Op, String) {
    loop {
        match within("a message", stream.next()).await.unwrap().expect("the stream ended") {
            Message::Event(event) => return (event.topic.to_string(), event.op, event.data.to_string()),
            Message::Subscribed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_client_reads_and_resumes_on_every_transport() {
    let edge = Edge::start().await;
    let client = Client::new(&format!("http://{}", edge.address)).unwrap();
    for transport in Transport::ALL {
        edge.put("vm/a", &format!("\"{transport}\""));
        let request = || EventsRequest::new(["vm/*".parse().unwrap()]);
        let mut stream = client.open(transport, request()).await.unwrap();
        let value = format!("\"{transport}\"");
        assert_eq!(event(&mut stream).await, ("vm/a".into(), Op::Snapshot, value), "{transport}");
        edge.commit(vec![(1, message("vm/b", "1")), (1, message("vm/c", "1")), (2, message("vm/b", "2"))]);
        for expected in [("vm/b", "1"), ("vm/c", "1"), ("vm/b", "2")] {
            let (topic, _, data) = event(&mut stream).await;
            assert_eq!((topic.as_str(), data.as_str()), expected, "{transport}");
        }
        // Cut, and taken up on the next transport: what came between is there, and nothing twice.
        edge.send("vm/d", "3");
        let (topic, ..) = event(&mut stream).await;
        assert_eq!(topic, "vm/d", "{transport}");
        let resumed = stream.into_subscription();
        edge.send("vm/e", "4");
        for other in Transport::ALL {
            let mut stream = client.resume(other, resumed.clone()).await.unwrap();
            let (topic, ..) = event(&mut stream).await;
            assert_eq!(topic, "vm/e", "{transport} then {other}");
        }
        edge.clear("vm/a");
    }
    edge.until_waiting(0).await;
}

/// Who is cut behind the first event of a history that it was told from its start, and comes back where history begins
/// later, has missed what lies between, and hears of it.
#[tokio::test]
async fn a_cut_behind_the_first_event_of_all_hides_nothing_elsewhere() {
    let (long, short) = (
        Edge::start().await,
        Edge::with(Config::default(), hub::Config { events: 2, ..Default::default() }).await,
    );
    let clients = [&long, &short].map(|edge| Client::new(&format!("http://{}", edge.address)).unwrap());
    for n in 1..=6 {
        long.send("a", &n.to_string());
        short.send("a", &n.to_string());
    }
    for transport in Transport::ALL {
        for other in Transport::ALL {
            let request = EventsRequest::new(["a".parse().unwrap()]).after(After::Earliest);
            let mut stream = clients[0].open(transport, request).await.unwrap();
            assert_eq!(event(&mut stream).await.2, "1", "{transport}");
            let cut = stream.into_subscription();
            let mut stream = clients[0].resume(other, cut.clone()).await.unwrap();
            assert_eq!(event(&mut stream).await.2, "2", "{transport} then {other}");
            let mut stream = clients[1].resume(other, cut).await.unwrap();
            loop {
                match within("a message", stream.next()).await.unwrap().expect("the stream ended") {
                    Message::Reset(_) => break,
                    Message::Subscribed { .. } => {}
                    message => panic!("{transport} then {other}: {message:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn the_client_hears_goodbye_on_streams() {
    for transport in [Transport::Sse, Transport::WebSocket] {
        let edge = Edge::start().await;
        let client = Client::new(&format!("http://{}", edge.address)).unwrap();
        let request = EventsRequest::new(["vm/*".parse().unwrap()]);
        let mut stream = client.open(transport, request).await.unwrap();
        edge.drain.cancel();
        loop {
            match within("a message", stream.next()).await.unwrap().expect("ended without a goodbye") {
                Message::Bye { retry } => break assert!(retry.is_some(), "{transport}"),
                Message::Subscribed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn the_client_hears_on_streams_why_it_is_not_served() {
    let edge = Edge::unstarted(Config::default(), hub::Config::default()).await;
    let client = Client::new(&format!("http://{}", edge.address)).unwrap();
    let why = client.poll(&EventsRequest::new(["a".parse().unwrap()])).await.unwrap_err();
    let why = why.problem().unwrap().clone();
    for transport in [Transport::Sse, Transport::WebSocket] {
        let request = EventsRequest::new(["a".parse().unwrap()]);
        let mut stream = client.open(transport, request).await.unwrap();
        match within("the reason", stream.next()).await.unwrap() {
            Some(Message::Refused { code, detail }) => {
                assert_eq!((code, detail), (why.code, why.detail.clone()), "{transport}");
            }
            other => panic!("{transport}: {other:?}"),
        }
        let end = within("the end", stream.next()).await.unwrap();
        assert!(matches!(end, Some(Message::Bye { retry: Some(_) })), "{transport}: {end:?}");
    }
}
