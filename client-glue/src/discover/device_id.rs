//! IEEE 1284 device ids, as printers give them over USB and SNMP:
//! `MFG:Hewlett-Packard;CMD:PJL,PCL,POSTSCRIPT;MDL:HP LaserJet 4;CLS:PRINTER;SN:X123;`.

/// Longest id that is read, bytes. The parallel port's length word could say 64 KiB; no device says more than a fraction.
const MAX_ID: usize = 1024;

/// What an id says, as it says it: nothing is clean here. The first of two values counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeviceId {
    /// Who made it: `MFG`, `MANUFACTURER`.
    pub(crate) maker: Option<Vec<u8>>,
    /// Which model it is: `MDL`, `MODEL`.
    pub(crate) model: Option<Vec<u8>>,
    /// Its serial number: `SN`, `SERN`, `SERIALNUMBER`.
    pub(crate) serial: Option<Vec<u8>>,
    /// The languages it understands: `CMD`, `COMMAND SET`.
    pub(crate) commands: Vec<Vec<u8>>,
    /// What kind of device it is: `CLS`, `CLASS`.
    pub(crate) class: Option<Vec<u8>>,
}

impl DeviceId {
    /// `None`: neither maker nor model nor language is in it, so it is something else, or nothing.
    pub(crate) fn parse(bytes: &[u8]) -> Option<DeviceId> {
        let bytes = bytes.get(..MAX_ID).unwrap_or(bytes);
        let mut id = DeviceId::default();
        for entry in without_length(bytes).split(|byte| *byte == b';') {
            let Some(colon) = entry.iter().position(|byte| *byte == b':') else { continue };
            let (key, value) = entry.split_at(colon);
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            if value.is_empty() {
                continue;
            }
            let is = |names: &[&str]| {
                names.iter().any(|name| key.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
            };
            if is(&["MFG", "MANUFACTURER"]) {
                id.maker.get_or_insert_with(|| value.to_vec());
            } else if is(&["MDL", "MODEL"]) {
                id.model.get_or_insert_with(|| value.to_vec());
            } else if is(&["SN", "SERN", "SERIALNUMBER"]) {
                id.serial.get_or_insert_with(|| value.to_vec());
            } else if is(&["CLS", "CLASS"]) {
                id.class.get_or_insert_with(|| value.to_vec());
            } else if is(&["CMD", "COMMAND SET"]) && id.commands.is_empty() {
                let commands = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                id.commands = commands.filter(|command| !command.is_empty()).map(<[u8]>::to_vec).collect();
            }
        }
        let told = id.maker.is_some() || id.model.is_some() || !id.commands.is_empty();
        told.then_some(id)
    }

    /// Maker and model in one line, the maker once: makers write it before the model too.
    pub(crate) fn make_and_model(&self) -> Option<Vec<u8>> {
        match (&self.maker, &self.model) {
            (Some(maker), Some(model)) => {
                let begun = model.get(..maker.len()).is_some_and(|start| start.eq_ignore_ascii_case(maker));
                if begun { Some(model.clone()) } else { Some([maker.as_slice(), b" ", model].concat()) }
            }
            (None, Some(model)) => Some(model.clone()),
            (Some(maker), None) => Some(maker.clone()),
            (None, None) => None,
        }
    }

    /// The languages as media types, as DNS-SD's `pdl` has them, each once; those that have none are left out.
    pub(crate) fn media_types(&self) -> Vec<&'static str> {
        let mut types = Vec::new();
        for command in &self.commands {
            let is = |names: &[&str]| names.iter().any(|name| command.eq_ignore_ascii_case(name.as_bytes()));
            let starts = |name: &str| {
                command.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
            };
            let kind = if starts("POSTSCRIPT") || is(&["PS", "BR-SCRIPT3", "BRSCRIPT", "KPDL"]) {
                "application/postscript"
            } else if starts("PDF") {
                "application/pdf"
            } else if starts("PCLXL") || is(&["PCL6", "PCL 6", "PCL-XL", "PCL XL"]) {
                "application/vnd.hp-PCLXL"
            } else if starts("PCL") || is(&["HP-GL/2"]) {
                "application/vnd.hp-PCL"
            } else if starts("PWG") {
                "image/pwg-raster"
            } else if starts("URF") || is(&["APPLERASTER"]) {
                "image/urf"
            } else if is(&["ESCPL2", "ESC/P2"]) || starts("ESCPR") {
                "application/vnd.epson.escpr"
            } else if is(&["ZPL", "ZPLII", "ZPL II"]) {
                "application/vnd.zebra-zpl"
            } else if is(&["JPEG", "JPG"]) {
                "image/jpeg"
            } else {
                continue;
            };
            if !types.contains(&kind) {
                types.push(kind);
            }
        }
        types
    }
}

/// Some agents leave the length word of the parallel port before it, in either order of bytes.
fn without_length(bytes: &[u8]) -> &[u8] {
    match bytes {
        [high, low, rest @ ..] => {
            let length = [u16::from_be_bytes([*high, *low]), u16::from_le_bytes([*high, *low])];
            let fits = |length: &u16| {
                let length = usize::from(*length);
                length == bytes.len() || length == rest.len()
            };
            if length.iter().any(fits) || !high.is_ascii_graphic() { rest } else { bytes }
        }
        [..] => bytes,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: &Option<Vec<u8>>) -> &str {
        std::str::from_utf8(value.as_deref().unwrap_or_default()).unwrap()
    }

    #[test]
    fn ids_of_real_printers_are_read() {
        let id = DeviceId::parse(
            b"MFG:Hewlett-Packard;MDL:HP LaserJet 4050 Series ;CMD:PJL,MLC,PCL,PCLXL,POSTSCRIPT;CLS:PRINTER;\
              DES:Hewlett-Packard LaserJet;SN:USBB123456;",
        )
        .unwrap();
        assert_eq!(text(&id.maker), "Hewlett-Packard");
        assert_eq!(text(&id.model), "HP LaserJet 4050 Series");
        assert_eq!(text(&id.serial), "USBB123456");
        assert_eq!(text(&id.class), "PRINTER");
        assert_eq!(
            id.media_types(),
            ["application/vnd.hp-PCL", "application/vnd.hp-PCLXL", "application/postscript"]
        );
        assert_eq!(id.make_and_model().unwrap(), b"Hewlett-Packard HP LaserJet 4050 Series");

        let id = DeviceId::parse(
            b"MANUFACTURER:Brother;COMMAND SET:PJL,PCL,PCLXL,URF;MODEL:Brother HL-L2350DW;CLASS:PRINTER;",
        )
        .unwrap();
        assert_eq!(id.make_and_model().unwrap(), b"Brother HL-L2350DW");
        assert_eq!(id.media_types(), ["application/vnd.hp-PCL", "application/vnd.hp-PCLXL", "image/urf"]);

        let zebra =
            DeviceId::parse(b"MANUFACTURER:Zebra Technologies ;COMMAND SET:ZPL;MODEL:ZTC ZD420;").unwrap();
        assert_eq!(zebra.media_types(), ["application/vnd.zebra-zpl"]);
    }

    #[test]
    fn the_length_word_is_dropped_and_nothing_else() {
        let plain = b"MFG:A;MDL:B;";
        let wanted = DeviceId::parse(plain).unwrap();
        for length in [[0, 14], [14, 0], [0, 12], [12, 0], [0, 99]] {
            assert_eq!(DeviceId::parse(&[&length[..], plain].concat()).unwrap(), wanted);
        }
        assert_eq!(text(&wanted.maker), "A");
    }

    #[test]
    fn what_is_none_is_none() {
        for bytes in
            [&b""[..], b";", b":", b";;;:::;", b"no colon", b"MFG:;MDL: ;", b"\0\0", b"x", b"SN:1234;"]
        {
            assert_eq!(DeviceId::parse(bytes), None, "{bytes:?}");
        }
        let long = format!("MFG:{};MDL:never seen;", "x".repeat(70_000));
        let id = DeviceId::parse(long.as_bytes()).unwrap();
        assert_eq!((id.maker.unwrap().len(), id.model), (MAX_ID - 4, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            if let Some(id) = DeviceId::parse(&bytes) {
                id.media_types();
                prop_assert!(id.make_and_model().is_none_or(|text| text.len() <= MAX_ID + 1));
            }
        }
    }
}
