use super::*;

#[test]
fn names() {
    for name in ["tap0", "a", "fifteen-letters", "vm1.tun"] {
        assert_eq!(name.parse::<TapName>().unwrap().to_string(), name);
    }
    for wrong in ["", ".", "..", "sixteen-letters.", "a b", "a/b", "a:b", "tap%d", "t\u{e4}p", "tap\n"] {
        let error = wrong.parse::<TapName>().unwrap_err().to_string();
        assert!(error.contains("expected 1 to 15 characters"), "{error}");
    }
}

#[test]
fn specs() {
    for (text, name, offload) in [
        ("tap0", "tap0", true),
        ("tap0,offload=on", "tap0", true),
        ("tap0,offload=off", "tap0", false),
        ("a,b", "a,b", true),
        ("a,b,offload=off", "a,b", false),
    ] {
        let spec: TapSpec = text.parse().unwrap();
        assert_eq!((spec.name.to_string().as_str(), spec.offload), (name, offload));
        assert_eq!(spec.to_string().parse(), Ok(spec));
    }
    for wrong in ["tap0,offload=maybe", "tap0,queues=2", "tap0,offload=off,offload=x"] {
        let error = wrong.parse::<TapSpec>().unwrap_err().to_string();
        assert!(error.contains("expected offload=on or offload=off"), "{error}");
    }
    assert!(matches!(",offload=off".parse::<TapSpec>(), Err(TapSpecError::Name(_))));
}

#[test]
fn what_a_write_says() {
    let error = |code| sent(Err(io::Error::from_raw_os_error(code)));
    const EIO: i32 = 5;
    const EAGAIN: i32 = 11;
    const ENOMEM: i32 = 12;
    const EINVAL: i32 = 22;
    const EBADFD: i32 = 77;
    for dropped in [EIO, ENOMEM, EINVAL] {
        assert!(matches!(error(dropped), Sent::Dropped), "{dropped}");
    }
    assert!(matches!(error(EAGAIN), Sent::Later));
    assert!(matches!(error(EBADFD), Sent::Broken(LinkError::Deleted)));
    assert!(matches!(error(9), Sent::Broken(LinkError::Device(_))));
}

#[test]
fn the_loopback_is_there_and_no_tap() {
    let name: TapName = "lo".parse().unwrap();
    assert!(name.exists());
    assert_eq!(name.kind(), "another kind of device");
    assert!(!"no-such-device".parse::<TapName>().unwrap().exists());
}
