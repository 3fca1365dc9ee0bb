use super::*;

/// Every number that the protocol's header file (0.14.3) defines, type 0 standing for all channels, and the tunnel's,
/// which it no longer has.
const KNOWN: &[(u8, Sender, u16, &str)] = &[
    (0, Sender::Server, 1, "migrate"),
    (0, Sender::Server, 2, "migrate_data"),
    (0, Sender::Server, 3, "set_ack"),
    (0, Sender::Server, 4, "ping"),
    (0, Sender::Server, 5, "wait_for_channels"),
    (0, Sender::Server, 6, "disconnecting"),
    (0, Sender::Server, 7, "notify"),
    (0, Sender::Server, 8, "list"),
    (0, Sender::Client, 1, "ack_sync"),
    (0, Sender::Client, 2, "ack"),
    (0, Sender::Client, 3, "pong"),
    (0, Sender::Client, 4, "migrate_flush_mark"),
    (0, Sender::Client, 5, "migrate_data"),
    (0, Sender::Client, 6, "disconnecting"),
    (1, Sender::Server, 101, "migrate_begin"),
    (1, Sender::Server, 102, "migrate_cancel"),
    (1, Sender::Server, 103, "init"),
    (1, Sender::Server, 104, "channels_list"),
    (1, Sender::Server, 105, "mouse_mode"),
    (1, Sender::Server, 106, "multi_media_time"),
    (1, Sender::Server, 107, "agent_connected"),
    (1, Sender::Server, 108, "agent_disconnected"),
    (1, Sender::Server, 109, "agent_data"),
    (1, Sender::Server, 110, "agent_token"),
    (1, Sender::Server, 111, "migrate_switch_host"),
    (1, Sender::Server, 112, "migrate_end"),
    (1, Sender::Server, 113, "name"),
    (1, Sender::Server, 114, "uuid"),
    (1, Sender::Server, 115, "agent_connected_tokens"),
    (1, Sender::Server, 116, "migrate_begin_seamless"),
    (1, Sender::Server, 117, "migrate_dst_seamless_ack"),
    (1, Sender::Server, 118, "migrate_dst_seamless_nack"),
    (1, Sender::Client, 101, "client_info"),
    (1, Sender::Client, 102, "migrate_connected"),
    (1, Sender::Client, 103, "migrate_connect_error"),
    (1, Sender::Client, 104, "attach_channels"),
    (1, Sender::Client, 105, "mouse_mode_request"),
    (1, Sender::Client, 106, "agent_start"),
    (1, Sender::Client, 107, "agent_data"),
    (1, Sender::Client, 108, "agent_token"),
    (1, Sender::Client, 109, "migrate_end"),
    (1, Sender::Client, 110, "migrate_dst_do_seamless"),
    (1, Sender::Client, 111, "migrate_connected_seamless"),
    (1, Sender::Client, 112, "quality_indicator"),
    (2, Sender::Server, 101, "mode"),
    (2, Sender::Server, 102, "mark"),
    (2, Sender::Server, 103, "reset"),
    (2, Sender::Server, 104, "copy_bits"),
    (2, Sender::Server, 105, "inval_list"),
    (2, Sender::Server, 106, "inval_all_pixmaps"),
    (2, Sender::Server, 107, "inval_palette"),
    (2, Sender::Server, 108, "inval_all_palettes"),
    (2, Sender::Server, 122, "stream_create"),
    (2, Sender::Server, 123, "stream_data"),
    (2, Sender::Server, 124, "stream_clip"),
    (2, Sender::Server, 125, "stream_destroy"),
    (2, Sender::Server, 126, "stream_destroy_all"),
    (2, Sender::Server, 302, "draw_fill"),
    (2, Sender::Server, 303, "draw_opaque"),
    (2, Sender::Server, 304, "draw_copy"),
    (2, Sender::Server, 305, "draw_blend"),
    (2, Sender::Server, 306, "draw_blackness"),
    (2, Sender::Server, 307, "draw_whiteness"),
    (2, Sender::Server, 308, "draw_invers"),
    (2, Sender::Server, 309, "draw_rop3"),
    (2, Sender::Server, 310, "draw_stroke"),
    (2, Sender::Server, 311, "draw_text"),
    (2, Sender::Server, 312, "draw_transparent"),
    (2, Sender::Server, 313, "draw_alpha_blend"),
    (2, Sender::Server, 314, "surface_create"),
    (2, Sender::Server, 315, "surface_destroy"),
    (2, Sender::Server, 316, "stream_data_sized"),
    (2, Sender::Server, 317, "monitors_config"),
    (2, Sender::Server, 318, "draw_composite"),
    (2, Sender::Server, 319, "stream_activate_report"),
    (2, Sender::Server, 320, "gl_scanout_unix"),
    (2, Sender::Server, 321, "gl_draw"),
    (2, Sender::Server, 322, "quality_indicator"),
    (2, Sender::Client, 101, "init"),
    (2, Sender::Client, 102, "stream_report"),
    (2, Sender::Client, 103, "preferred_compression"),
    (2, Sender::Client, 104, "gl_draw_done"),
    (2, Sender::Client, 105, "preferred_video_codec_type"),
    (3, Sender::Server, 101, "init"),
    (3, Sender::Server, 102, "key_modifiers"),
    (3, Sender::Server, 111, "mouse_motion_ack"),
    (3, Sender::Client, 101, "key_down"),
    (3, Sender::Client, 102, "key_up"),
    (3, Sender::Client, 103, "key_modifiers"),
    (3, Sender::Client, 104, "key_scancode"),
    (3, Sender::Client, 111, "mouse_motion"),
    (3, Sender::Client, 112, "mouse_position"),
    (3, Sender::Client, 113, "mouse_press"),
    (3, Sender::Client, 114, "mouse_release"),
    (4, Sender::Server, 101, "init"),
    (4, Sender::Server, 102, "reset"),
    (4, Sender::Server, 103, "set"),
    (4, Sender::Server, 104, "move"),
    (4, Sender::Server, 105, "hide"),
    (4, Sender::Server, 106, "trail"),
    (4, Sender::Server, 107, "inval_one"),
    (4, Sender::Server, 108, "inval_all"),
    (5, Sender::Server, 101, "data"),
    (5, Sender::Server, 102, "mode"),
    (5, Sender::Server, 103, "start"),
    (5, Sender::Server, 104, "stop"),
    (5, Sender::Server, 105, "volume"),
    (5, Sender::Server, 106, "mute"),
    (5, Sender::Server, 107, "latency"),
    (6, Sender::Server, 101, "start"),
    (6, Sender::Server, 102, "stop"),
    (6, Sender::Server, 103, "volume"),
    (6, Sender::Server, 104, "mute"),
    (6, Sender::Client, 101, "data"),
    (6, Sender::Client, 102, "mode"),
    (6, Sender::Client, 103, "start_mark"),
    (8, Sender::Server, 101, "data"),
    (8, Sender::Client, 101, "data"),
    (9, Sender::Server, 101, "data"),
    (9, Sender::Server, 102, "compressed_data"),
    (9, Sender::Client, 101, "data"),
    (9, Sender::Client, 102, "compressed_data"),
    (10, Sender::Server, 201, "init"),
    (10, Sender::Server, 202, "event"),
    (10, Sender::Client, 201, "event"),
    (7, Sender::Server, 101, "init"),
    (7, Sender::Server, 102, "service_ip_map"),
    (7, Sender::Server, 103, "socket_open"),
    (7, Sender::Server, 104, "socket_fin"),
    (7, Sender::Server, 105, "socket_close"),
    (7, Sender::Server, 106, "socket_data"),
    (7, Sender::Server, 107, "socket_closed_ack"),
    (7, Sender::Server, 108, "socket_token"),
    (7, Sender::Server, 109, "probe_ack"),
    (7, Sender::Server, 110, "name_query"),
    (7, Sender::Client, 101, "service_add"),
    (7, Sender::Client, 102, "service_remove"),
    (7, Sender::Client, 103, "socket_open_ack"),
    (7, Sender::Client, 104, "socket_open_nack"),
    (7, Sender::Client, 105, "socket_fin"),
    (7, Sender::Client, 106, "socket_closed"),
    (7, Sender::Client, 107, "socket_closed_ack"),
    (7, Sender::Client, 108, "socket_data"),
    (7, Sender::Client, 109, "socket_token"),
    (7, Sender::Client, 110, "socket_reset"),
    (7, Sender::Client, 111, "probe"),
    (7, Sender::Client, 112, "service_info"),
    (7, Sender::Client, 113, "name_answer"),
    (7, Sender::Client, 114, "domain_add"),
    (7, Sender::Client, 115, "domain_remove"),
];

/// Port (10) and webdav (11) build on usbredir's messages (9), and webdav on port's.
fn parents(channel_type: u8) -> &'static [u8] {
    match channel_type {
        10 => &[0, 9],
        11 => &[0, 9, 10],
        _ => &[0],
    }
}

#[test]
fn exactly_the_known_messages_have_names() {
    for channel_type in 0..=12 {
        for sender in [Sender::Client, Sender::Server] {
            for kind in (0..=1000).chain([u16::MAX]) {
                let known = KNOWN.iter().find(|(of, by, number, _)| {
                    (*of == channel_type || parents(channel_type).contains(of))
                        && *by == sender
                        && *number == kind
                });
                assert_eq!(
                    message(channel_type, sender, kind),
                    known.map(|row| row.3),
                    "message {kind} of the {} on channel type {channel_type}",
                    sender.name(),
                );
            }
        }
    }
}

#[test]
fn channel_types_have_names() {
    let names: Vec<_> = (1..=11).map(|number| channel(number).unwrap()).collect();
    assert_eq!(
        names,
        [
            "main",
            "display",
            "inputs",
            "cursor",
            "playback",
            "record",
            "tunnel",
            "smartcard",
            "usbredir",
            "port",
            "webdav"
        ]
    );
    for number in [0, 12, 42, 255] {
        assert_eq!(channel(number), None);
    }
    for number in 1..=11 {
        assert_eq!(channel_type(channel(number).unwrap()), Some(number));
    }
    assert_eq!(channel_type("Main"), None);
}
