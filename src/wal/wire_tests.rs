//! The wire against a peer that sends and takes bytes in awkward portions.
#![allow(clippy::unwrap_used)]

use bytes::BufMut;
use tokio::io::{DuplexStream, duplex, split};

use super::*;

fn wire(buffer: usize) -> (Wire, DuplexStream) {
    let (ours, theirs) = duplex(buffer);
    let (reader, writer) = split(ours);
    let mut wire = Wire::new(Box::new(reader), Box::new(writer));
    wire.trust();
    (wire, theirs)
}

fn copy_data(body: &[u8]) -> Vec<u8> {
    let mut message = vec![b'd'];
    message.put_u32(u32::try_from(body.len() + 4).unwrap());
    message.put_slice(body);
    message
}

async fn body(wire: &mut Wire) -> Bytes {
    match wire.next().await.unwrap() {
        Packet::CopyData(body) => body,
        _ => panic!("not CopyData"),
    }
}

#[tokio::test]
async fn a_message_in_single_bytes_survives_dropped_waits() {
    let (mut wire, mut peer) = wire(64);
    for byte in copy_data(b"first").into_iter().chain(copy_data(b"")) {
        let waited = tokio::time::timeout(std::time::Duration::ZERO, wire.next()).await;
        assert!(waited.is_err());
        peer.write_all(&[byte]).await.unwrap();
        if wire.input.len() + 1 == HEADER + 5 {
            break;
        }
    }
    assert_eq!(body(&mut wire).await, &b"first"[..]);
}

#[tokio::test]
async fn long_and_short_messages_keep_their_bytes_and_free_their_buffers() {
    let (mut wire, mut peer) = wire(8 * 1024);
    let sizes = [10, CHUNK - HEADER, 3 * CHUNK + 7, 0, 5_000_000, LEAST_ROOM, 1, CHUNK, 99];
    let content =
        |index: usize, size: usize| -> Vec<u8> { (0..size).map(|at| (at * 7 + index) as u8).collect() };
    let sender = tokio::spawn(async move {
        for (index, size) in sizes.into_iter().enumerate() {
            peer.write_all(&copy_data(&content(index, size))).await.unwrap();
        }
        peer
    });
    let mut kept = Vec::new();
    for (index, size) in sizes.into_iter().enumerate() {
        let body = body(&mut wire).await;
        assert!(body == content(index, size), "message {index} of {size} bytes");
        assert!(wire.input.capacity() <= 2 * CHUNK, "{}", wire.input.capacity());
        kept.push(body);
    }
    sender.await.unwrap();
    assert!(kept.iter().enumerate().all(|(index, body)| *body == content(index, sizes[index])));
}

#[tokio::test]
async fn what_is_half_written_is_kept_while_reading_goes_on() {
    let (mut wire, mut peer) = wire(16);
    wire.output.put_slice(&[7; 100]);
    wire.push().await;
    assert_eq!(wire.output.len(), 84);
    peer.write_all(&copy_data(b"ping")).await.unwrap();
    assert_eq!(body(&mut wire).await, &b"ping"[..]);
    let mut received = vec![0; 100];
    let (read, waited) = tokio::join!(peer.read_exact(&mut received), async {
        tokio::time::timeout(std::time::Duration::from_millis(50), wire.next()).await
    });
    assert!(read.is_ok() && waited.is_err());
    assert_eq!(received, [7; 100]);
}

#[tokio::test]
async fn what_the_writer_holds_back_is_flushed() {
    let (ours, mut peer) = duplex(1024);
    let (reader, writer) = split(ours);
    let mut wire = Wire::new(Box::new(reader), Box::new(tokio::io::BufWriter::new(writer)));
    let mut arrived = async || {
        let mut received = [0; 5];
        let read = peer.read_exact(&mut received);
        tokio::time::timeout(std::time::Duration::from_secs(10), read).await.unwrap().unwrap();
        received
    };
    wire.output.put_slice(b"first");
    wire.push().await;
    assert_eq!(&arrived().await, b"first");
    wire.output.put_slice(b"again");
    wire.exchange().await.unwrap();
    assert_eq!(&arrived().await, b"again");
}

#[tokio::test]
async fn lengths_that_cannot_be_are_refused_before_any_allocation() {
    for (header, trusted) in
        [(&b"d\xff\xff\xff\xff"[..], true), (b"d\x7f\xff\xff\xff", true), (b"R\0\x10\0\0", false)]
    {
        let (mut wire, mut peer) = wire(64);
        if !trusted {
            wire.largest = LARGEST_AT_STARTUP;
        }
        peer.write_all(header).await.unwrap();
        assert!(matches!(wire.next().await, Err(WalError::TooLarge { .. } | WalError::Protocol(_))));
        assert!(wire.input.capacity() <= CHUNK);
    }
}

#[tokio::test]
async fn the_end_of_the_stream_is_typed() {
    let (mut wire, mut peer) = wire(64);
    peer.write_all(b"d\0\0").await.unwrap();
    drop(peer);
    wire.output.put_slice(b"lost");
    assert!(matches!(wire.next().await, Err(WalError::Lost(Some(_)))));
}
