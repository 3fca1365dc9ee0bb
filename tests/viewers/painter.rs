//! A guest of one boot sector, up within a second: it paints its screen in the colour of the key that was typed last, says each
//! key on its serial port, a line each, and beeps all the time, so that there is always sound. The space bar
//! makes it draw for ever, faster than QEMU looks.
//!
//! Real mode of the 8086 with 32-bit registers. The screen is set by the ports of QEMU's VGA (`docs/specs/standard-vga.rst`,
//! "bochs dispi interface"), and written 64 KiB at a time through its window at a0000.

/// The colour that a key paints: red, green, blue.
pub(crate) fn colour(key: u8) -> [u8; 3] {
    [0x40, !key, key]
}

/// The key that stands for the start.
pub(crate) const START: u8 = b'.';
/// The key after which it only draws.
pub(crate) const DRAW: u8 = b' ';

/// The sector for a screen of this size, with 32 bits a pixel.
pub(crate) fn sector(width: u16, height: u16) -> Vec<u8> {
    let windows = (usize::from(width) * usize::from(height) * 4).div_ceil(64 << 10) as u16;
    let [low, high] = windows.to_le_bytes();
    #[rustfmt::skip]
    let mut code = vec![
        // Segments: data and stack at 0, ES is the window. The stack is below the sector, which lies at 7c00.
        0xfc,                               // 00  cld
        0x31, 0xc0,                         // 01  xor ax, ax
        0x8e, 0xd8,                         // 03  mov ds, ax
        0x8e, 0xd0,                         // 05  mov ss, ax
        0xbc, 0x00, 0x7c,                   // 07  mov sp, 7c00
        0xb4, 0xa0,                         // 0a  mov ah, a0
        0x8e, 0xc0,                         // 0c  mov es, ax
        // The mode: five pairs of index and value, below.
        0xbe, 0xa1, 0x7c,                   // 0e  mov si, 7c00 + mode
        0xb9, 0x05, 0x00,                   // 11  mov cx, 5
        0xba, 0xce, 0x01,                   // 14  mov dx, 1ce
        0x6f,                               // 17  outsw            next:
        0x42,                               // 18  inc dx
        0x6f,                               // 19  outsw
        0x4a,                               // 1a  dec dx
        0xe2, 0xfa,                         // 1b  loop next
        // A tone: timer 2 divides 1.19 MHz by 4a9 (1 kHz), and the speaker follows it.
        0xb0, 0xb6,                         // 1d  mov al, b6
        0xe6, 0x43,                         // 1f  out 43, al
        0xb0, 0xa9,                         // 21  mov al, a9
        0xe6, 0x42,                         // 23  out 42, al
        0xb0, 0x04,                         // 25  mov al, 4
        0xe6, 0x42,                         // 27  out 42, al
        0xe4, 0x61,                         // 29  in al, 61
        0x0c, 0x03,                         // 2b  or al, 3
        0xe6, 0x61,                         // 2d  out 61, al
        0xb0, START,                        // 2f  mov al, START
        // A key is in AL: say it, with a line's end.
        0x50,                               // 31  push ax          key:
        0xe8, 0x55, 0x00,                   // 32  call say
        0xb0, 0x0a,                         // 35  mov al, 0a
        0xe8, 0x50, 0x00,                   // 37  call say
        0x58,                               // 3a  pop ax
        // EAX becomes its colour, as blue, green, red in this order of bytes.
        0x88, 0xc4,                         // 3b  mov ah, al
        0xf6, 0xd4,                         // 3d  not ah
        0x66, 0x0f, 0xb7, 0xc0,             // 3f  movzx eax, ax
        0x66, 0x0d, 0x00, 0x00, 0x40, 0x00, // 43  or eax, 400000
        // All windows, one after the other.
        0x31, 0xed,                         // 49  xor bp, bp
        0xe8, 0x43, 0x00,                   // 4b  call window      paint:
        0xb9, 0x00, 0x40,                   // 4e  mov cx, 4000
        0x66, 0xf3, 0xab,                   // 51  rep stosd
        0x45,                               // 54  inc bp
        0x81, 0xfd, low, high,              // 55  cmp bp, windows
        0x72, 0xf0,                         // 59  jb paint
        // The BIOS waits for the next key.
        0xb4, 0x00,                         // 5b  mov ah, 0
        0xcd, 0x16,                         // 5d  int 16
        0x3c, DRAW,                         // 5f  cmp al, DRAW
        0x75, 0xce,                         // 61  jne key
        // Timer 0 divides by 2e9c: 100 interrupts a second.
        0xb0, 0x34,                         // 63  mov al, 34
        0xe6, 0x43,                         // 65  out 43, al
        0xb0, 0x9c,                         // 67  mov al, 9c
        0xe6, 0x40,                         // 69  out 40, al
        0xb0, 0x2e,                         // 6b  mov al, 2e
        0xe6, 0x40,                         // 6d  out 40, al
        // One pixel of each 32 is another one every time, which is what QEMU compares by.
        0x31, 0xed,                         // 6f  xor bp, bp       draw:
        0xe8, 0x1d, 0x00,                   // 71  call window      one:
        0x26, 0x66, 0x89, 0x1d,             // 74  mov es:[di], ebx pixel:
        0x66, 0x43,                         // 78  inc ebx
        0x81, 0xc7, 0x80, 0x00,             // 7a  add di, 80
        0x75, 0xf4,                         // 7e  jne pixel
        0x45,                               // 80  inc bp
        0x81, 0xfd, low, high,              // 81  cmp bp, windows
        0x72, 0xea,                         // 85  jb one
        0xf4,                               // 87  hlt
        0xeb, 0xe5,                         // 88  jmp draw
        // The BIOS sends AL on the first serial port.
        0x31, 0xd2,                         // 8a  xor dx, dx       say:
        0xb4, 0x01,                         // 8c  mov ah, 1
        0xcd, 0x14,                         // 8e  int 14
        0xc3,                               // 90  ret
        // ES:DI becomes the beginning of window BP.
        0x50,                               // 91  push ax          window:
        0xba, 0xce, 0x01,                   // 92  mov dx, 1ce
        0xb8, 0x05, 0x00,                   // 95  mov ax, 5
        0xef,                               // 98  out dx, ax
        0x42,                               // 99  inc dx
        0x89, 0xe8,                         // 9a  mov ax, bp
        0xef,                               // 9c  out dx, ax
        0x58,                               // 9d  pop ax
        0x31, 0xff,                         // 9e  xor di, di
        0xc3,                               // a0  ret
    ];
    // Off; width; height; bits a pixel; on.
    for word in [4, 0, 1, width, 2, height, 3, 32, 4, 0x41] {
        code.extend(word.to_le_bytes());
    }
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code
}
