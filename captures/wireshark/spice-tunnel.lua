-- Wireshark dissector for the tunnel channel (type 7) of a Spice session.
--
-- Install:    mkdir -p ~/.local/lib/wireshark/plugins && cp captures/wireshark/spice-tunnel.lua ~/.local/lib/wireshark/plugins/
--             (elsewhere: Help > About Wireshark > Folders > Personal Lua Plugins)
-- Try out:    tshark -X lua_script:captures/wireshark/spice-tunnel.lua -r captures/tunnel-v1-pair.pcap -Y spice_tunnel
-- Not both at once: Wireshark refuses a protocol that is registered twice.
--
-- What it does. Every channel of a Spice session is a TCP connection of its own, and says in its first message which channel
-- it is. This dissector takes those that say 7, on any port, also under TLS whose keys Wireshark has, and leaves all others
-- to Wireshark's own Spice dissector, which loses step in a tunnel behind the client's first message. (The link message
-- of the others passes through here: "Protocols in frame" shows it, and a header in a packet of its own is shown with the rest.)
-- Where another protocol owns the port, as VNC does 5900, or the capture begins behind the link stage: Decode As, TCP port,
-- SPICE_TUNNEL (not SPICE). Then all connections of that port come here first, and those of other channels are handed on.
--
-- To filter: spice_tunnel.message == "socket_data", spice_tunnel.from == "client", spice_tunnel.socket == 3,
-- spice_tunnel.service == 0 (also finds the messages of sockets of that service), spice_tunnel.connection == 7 (socket numbers
-- are used again, this number is not), spice_tunnel.payload contains "IPP", spice_tunnel.malformed.
--
-- Reassembly is Wireshark's. For captures in which segments come out of order, switch on its TCP preference "Reassemble
-- out-of-order segments" (-o tcp.reassemble_out_of_order:TRUE).
--
-- Lua 5.2 (Wireshark 4.0 and 4.2) and 5.4 (from 4.4) both run it. The format is described in spice-proto/PROTOCOL.md.

local spice_tunnel = Proto("spice_tunnel", "Spice tunnel channel")

-- Numbers and names. A test compares these tables with those of the program.

local TUNNEL_CHANNEL = 7

local SERVER_MESSAGES = {
    [1] = "migrate",
    [2] = "migrate_data",
    [3] = "set_ack",
    [4] = "ping",
    [5] = "wait_for_channels",
    [6] = "disconnecting",
    [7] = "notify",
    [8] = "list",
    [101] = "init",
    [102] = "service_ip_map",
    [103] = "socket_open",
    [104] = "socket_fin",
    [105] = "socket_close",
    [106] = "socket_data",
    [107] = "socket_closed_ack",
    [108] = "socket_token",
    [109] = "probe_ack",
    [110] = "name_query",
}

local CLIENT_MESSAGES = {
    [1] = "ack_sync",
    [2] = "ack",
    [3] = "pong",
    [4] = "migrate_flush_mark",
    [5] = "migrate_data",
    [6] = "disconnecting",
    [101] = "service_add",
    [102] = "service_remove",
    [103] = "socket_open_ack",
    [104] = "socket_open_nack",
    [105] = "socket_fin",
    [106] = "socket_closed",
    [107] = "socket_closed_ack",
    [108] = "socket_data",
    [109] = "socket_token",
    [110] = "socket_reset",
    [111] = "probe",
    [112] = "service_info",
    [113] = "name_answer",
    [114] = "domain_add",
    [115] = "domain_remove",
}

local CHANNELS = {
    [1] = "main",
    [2] = "display",
    [3] = "inputs",
    [4] = "cursor",
    [5] = "playback",
    [6] = "record",
    [7] = "tunnel",
    [8] = "smartcard",
    [9] = "usbredir",
    [10] = "port",
    [11] = "webdav",
}

-- Bits of the capability words, from bit 0.
local COMMON_CAPS = {
    [0] = "AUTH_SELECTION",
    [1] = "AUTH_SPICE",
    [2] = "AUTH_SASL",
    [3] = "MINI_HEADER",
}

local TUNNEL_CAPS = {
    [0] = "EXTENDED",
    [1] = "RESET",
    [2] = "SERVICE_REMOVE",
    [3] = "PROBE",
    [4] = "SERVICE_INFO",
    [5] = "NAMES",
}

local LINK_CODES = {
    [0] = "OK",
    [1] = "ERROR",
    [2] = "INVALID_MAGIC",
    [3] = "INVALID_DATA",
    [4] = "VERSION_MISMATCH",
    [5] = "NEED_SECURED",
    [6] = "NEED_UNSECURED",
    [7] = "PERMISSION_DENIED",
    [8] = "BAD_CONNECTION_ID",
    [9] = "CHANNEL_NOT_AVAILABLE",
}

local MECHANISMS = { [1] = "ticket", [2] = "SASL" }
local NAME_STATUSES = { [0] = "found", [1] = "no such name", [2] = "failed", [3] = "refused" }
local SERVICE_TYPES = { [1] = "generic", [2] = "IPP" }
local ADDRESS_TYPES = { [0] = "none", [1] = "IPv4" }
local SEVERITIES = { [0] = "info", [1] = "warn", [2] = "error" }
local VISIBILITIES = { [0] = "low", [1] = "medium", [2] = "high" }

local MAGIC = "REDQ"
local LINK_HEADER_LEN = 16
local LINK_MESS_LEN = 18
local LINK_REPLY_LEN = 178
local LINK_MAX = 4096
local PUBLIC_KEY_LEN = 162
local TICKET_LEN = 128
local WORD_LEN = 4
local FULL_HEADER_LEN = 18
local MINI_HEADER_LEN = 6
-- Nothing longer is sent in a tunnel: a "header" that announces more is something else.
local MAX_BODY = 2 * 1024 * 1024
-- Longest name and description of a service.
local MAX_TEXT = 1024
-- Of what a service says of itself.
local MAX_INFO = 8192
local MAX_ADVERTS = 8
local MAX_SUBTYPES = 8
local MAX_TXT = 1300
local MAX_LABEL = 63
local MAX_HOST = 253
-- Domains that mean another thing on every host.
local SPECIAL_DOMAINS = {
    "local", "localhost", "invalid", "onion", "alt", "in-addr.arpa", "ip6.arpa", "ipv4only.arpa", "resolver.arpa",
}

-- Fields.

local f = {}

local function field(key, make, name, ...)
    f[key] = make("spice_tunnel." .. key, name, ...)
end

field("from", ProtoField.string, "From")
field("message", ProtoField.string, "Message")
field("size", ProtoField.uint32, "Size", base.DEC)

field("link.major", ProtoField.uint32, "Major version", base.DEC_HEX)
field("link.minor", ProtoField.uint32, "Minor version", base.DEC)
field("link.session_id", ProtoField.uint32, "Session id", base.HEX)
field("link.channel_type", ProtoField.uint8, "Channel type", base.DEC, CHANNELS)
field("link.channel_id", ProtoField.uint8, "Channel id", base.DEC)
field("link.num_common_caps", ProtoField.uint32, "Common capability words", base.DEC)
field("link.num_channel_caps", ProtoField.uint32, "Channel capability words", base.DEC)
field("link.caps_offset", ProtoField.uint32, "Capabilities offset", base.DEC)
field("link.common_caps", ProtoField.uint32, "Common capabilities", base.HEX)
field("link.channel_caps", ProtoField.uint32, "Tunnel capabilities", base.HEX)
field("link.error", ProtoField.uint32, "Error", base.DEC, LINK_CODES)
field("link.public_key", ProtoField.bytes, "Public key")
field("link.mechanism", ProtoField.uint32, "Authentication mechanism", base.DEC, MECHANISMS)
field("link.ticket", ProtoField.none, "Sealed ticket")
field("link.result", ProtoField.uint32, "Result", base.DEC, LINK_CODES)
field("link.sasl", ProtoField.none, "SASL exchange, or what it protects")

local COMMON_CAP_FIELDS, TUNNEL_CAP_FIELDS = {}, {}
for prefix, caps in pairs({ common_caps = COMMON_CAPS, channel_caps = TUNNEL_CAPS }) do
    for bit, name in pairs(caps) do
        local key = "link." .. prefix .. "." .. name:lower()
        field(key, ProtoField.bool, name, 32, nil, 2 ^ bit)
        local fields = caps == COMMON_CAPS and COMMON_CAP_FIELDS or TUNNEL_CAP_FIELDS
        fields[bit] = f[key]
    end
end

field("serial", ProtoField.uint64, "Serial", base.DEC)
field("type", ProtoField.uint16, "Type", base.DEC)
field("sub_list", ProtoField.uint32, "Offset of sub-messages", base.DEC)
field("sub_message", ProtoField.string, "Sub-message")
field("sub_type", ProtoField.uint16, "Type", base.DEC)
field("sub_size", ProtoField.uint32, "Size", base.DEC)
field("body", ProtoField.bytes, "Body")

field("max_sockets", ProtoField.uint16, "Sockets", base.DEC)
field("max_data", ProtoField.uint32, "Largest payload", base.DEC)
field("service", ProtoField.uint32, "Service", base.DEC)
field("group", ProtoField.uint32, "Group", base.DEC)
field("port", ProtoField.uint32, "Port", base.DEC)
field("service_type", ProtoField.uint32, "Service type", base.DEC, SERVICE_TYPES)
field("name_offset", ProtoField.uint32, "Offset of the name", base.DEC)
field("description_offset", ProtoField.uint32, "Offset of the description", base.DEC)
field("name", ProtoField.string, "Name")
field("description", ProtoField.string, "Description")
field("address_type", ProtoField.uint16, "Address type", base.DEC, ADDRESS_TYPES)
field("address", ProtoField.ipv4, "Address")
field("socket", ProtoField.uint16, "Socket", base.DEC)
field("probe", ProtoField.uint32, "Probe", base.DEC)
field("query", ProtoField.uint32, "Query", base.DEC)
field("status", ProtoField.uint8, "Status", base.DEC, NAME_STATUSES)
field("ttl", ProtoField.uint32, "Seconds for which it holds", base.DEC)
field("identity", ProtoField.string, "Identity")
field("host", ProtoField.string, "Host")
field("adverts", ProtoField.uint8, "Adverts", base.DEC)
field("advert_type", ProtoField.string, "Type")
field("instance", ProtoField.string, "Instance")
field("subtypes", ProtoField.uint8, "Subtypes", base.DEC)
field("subtype", ProtoField.string, "Subtype")
field("txt_length", ProtoField.uint16, "Length of the TXT data", base.DEC)
field("txt", ProtoField.string, "TXT")
field("tokens", ProtoField.uint32, "Tokens", base.DEC)
field("payload", ProtoField.bytes, "Payload")

field("flags", ProtoField.uint32, "Flags", base.HEX)
field("data", ProtoField.bytes, "Data")
field("generation", ProtoField.uint32, "Generation", base.DEC)
field("window", ProtoField.uint32, "Window", base.DEC)
field("ping_id", ProtoField.uint32, "Ping", base.DEC)
field("timestamp", ProtoField.uint64, "Time stamp", base.DEC)
field("padding", ProtoField.bytes, "Padding")
field("wait_count", ProtoField.uint8, "Channels to wait for", base.DEC)
field("wait_type", ProtoField.uint8, "Channel type", base.DEC, CHANNELS)
field("wait_id", ProtoField.uint8, "Channel id", base.DEC)
field("wait_serial", ProtoField.uint64, "Serial", base.DEC)
field("reason", ProtoField.uint32, "Reason", base.DEC, LINK_CODES)
field("severity", ProtoField.uint32, "Severity", base.DEC, SEVERITIES)
field("visibility", ProtoField.uint32, "Visibility", base.DEC, VISIBILITIES)
field("what", ProtoField.uint32, "What", base.DEC)
field("text_length", ProtoField.uint32, "Length of the text", base.DEC)
field("text", ProtoField.string, "Text")

-- Not on the wire, but known from what went before.
field("connection", ProtoField.uint32, "Connection", base.DEC)
field("opened_in", ProtoField.framenum, "Opened in", base.NONE, frametype.REQUEST)
field("answered_in", ProtoField.framenum, "Answered in", base.NONE, frametype.RESPONSE)

local fields = {}
for _, one in pairs(f) do
    fields[#fields + 1] = one
end
spice_tunnel.fields = fields

local malformed = ProtoExpert.new("spice_tunnel.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
local unknown = ProtoExpert.new("spice_tunnel.unknown", "Unknown message", expert.group.UNDECODED, expert.severity.WARN)
local incomplete =
    ProtoExpert.new("spice_tunnel.incomplete", "Incomplete", expert.group.REASSEMBLE, expert.severity.WARN)
local refused = ProtoExpert.new("spice_tunnel.refused", "Refused", expert.group.RESPONSE_CODE, expert.severity.NOTE)
spice_tunnel.experts = { malformed, unknown, incomplete, refused }

local tcp_stream = Field.new("tcp.stream")
local tcp_next = Field.new("tcp.nxtseq")

-- Bodies. A Reader goes along a body, adds what it reads to the tree, and stops at the first fault.

local Reader = {}
Reader.__index = Reader

function Reader.new(tvb, start, stop, tree)
    return setmetatable({ tvb = tvb, start = start, stop = stop, at = start, tree = tree }, Reader)
end

function Reader:fail(text, ...)
    self.fault = self.fault or string.format(text, ...)
end

-- The next bytes as a range, or nil. Never empty.
function Reader:take(count, what)
    if self.fault then
        return nil
    end
    if count > self.stop - self.at then
        self:fail("%s does not fit: the body ends after %d bytes", what, self.stop - self.start)
        return nil
    end
    local range = self.tvb(self.at, count)
    self.at = self.at + count
    return range
end

-- A little-endian number of 1, 2 or 4 bytes; 0 behind a fault.
function Reader:number(key, count)
    local range = self:take(count, key)
    if not range then
        return 0
    end
    self.tree:add_le(f[key], range)
    return range:le_uint()
end

-- 8 bytes, which are only shown.
function Reader:long(key)
    local range = self:take(8, key)
    if range then
        self.tree:add_le(f[key], range)
    end
end

-- All that is left, perhaps nothing. Gives its length.
function Reader:rest(key)
    local count = self.stop - self.at
    if not self.fault and count > 0 then
        self.tree:add(f[key], self:take(count, key))
    end
    return count
end

-- The string that stands at an offset of the body, behind the fixed part. Gives where it ends.
function Reader:pointed(key, offset, fixed)
    if self.fault then
        return fixed
    end
    local length = self.stop - self.start
    if offset < fixed or offset >= length then
        self:fail("offset of the %s: expected %d to %d, got %.0f", key, fixed, length - 1, offset)
        return fixed
    end
    local text = self.tvb:raw(self.start + offset, length - offset)
    local nul = text:find("\0", 1, true)
    if nul and nul - 1 > MAX_TEXT then
        self:fail("the %s: expected at most %d bytes, got %d", key, MAX_TEXT, nul - 1)
    elseif nul == 1 then
        self.tree:add(f[key], self.tvb(self.start + offset, 1), "")
    elseif nul then
        self.tree:add(f[key], self.tvb(self.start + offset, nul - 1))
    end
    if nul then
        return offset + nul
    end
    self:fail("the %s has no NUL at its end", key)
    return fixed
end

-- A text behind its length, which `judge` takes or says what is expected instead. "" behind a fault, and where `may_be_empty`
-- says that none is fine.
function Reader:counted(key, judge, may_be_empty)
    local length_range = self:take(1, key)
    local length = length_range and length_range:uint() or 0
    if length == 0 then
        if not may_be_empty then
            self:fail("the %s is empty", key)
        end
        return ""
    end
    local range = self:take(length, key)
    if not range then
        return ""
    end
    self:judged(key, range:raw(), judge)
    self.tree:add(f[key], range, range:string(ENC_UTF_8))
    return range:string(ENC_UTF_8)
end

function Reader:judged(key, text, judge)
    local expected = judge(text)
    if expected then
        self:fail("the %s: expected %s", key, expected)
    end
end

-- TunnelIpInfo. Gives a text.
function Reader:address()
    local kind = self:number("address_type", 2)
    if self.fault or kind == 0 then
        return "no address"
    end
    if kind ~= 1 then
        self:fail("address type: expected 0 (none) or 1 (IPv4), got %d", kind)
        return "?"
    end
    local range = self:take(4, "address")
    if not range then
        return "?"
    end
    self.tree:add(f.address, range)
    return tostring(range:ipv4())
end

-- Texts of the extensions. Each judge gives nil, or what is expected.

-- The characters of a text, or nil where it is not UTF-8.
local function characters(text)
    local found, at = {}, 1
    while at <= #text do
        local first = text:byte(at)
        local more, code, least
        if first < 0x80 then
            more, code, least = 0, first, 0
        elseif first >= 0xc2 and first < 0xe0 then
            more, code, least = 1, first - 0xc0, 0x80
        elseif first >= 0xe0 and first < 0xf0 then
            more, code, least = 2, first - 0xe0, 0x800
        elseif first >= 0xf0 and first < 0xf5 then
            more, code, least = 3, first - 0xf0, 0x10000
        else
            return nil
        end
        for behind = 1, more do
            local byte = text:byte(at + behind)
            if not byte or byte < 0x80 or byte > 0xbf then
                return nil
            end
            code = code * 64 + byte - 0x80
        end
        if code < least or code > 0x10ffff or (code >= 0xd800 and code <= 0xdfff) then
            return nil
        end
        found[#found + 1] = code
        at = at + 1 + more
    end
    return found
end

-- Characters that control instead of being read: first and last of each range.
local UNCLEAN = {
    { 0, 0x1f }, { 0x7f, 0x9f }, { 0xad, 0xad }, { 0x61c, 0x61c }, { 0x180e, 0x180e }, { 0x200b, 0x200f },
    { 0x2028, 0x202e }, { 0x2060, 0x206f }, { 0xfeff, 0xfeff }, { 0xfff0, 0xffff }, { 0xe0000, 0xe0fff },
}

local function clean(text)
    local found = characters(text)
    for _, code in ipairs(found or {}) do
        for _, range in ipairs(UNCLEAN) do
            if code >= range[1] and code <= range[2] then
                return "clean text"
            end
        end
    end
    return not found and "UTF-8" or nil
end

local function label(text)
    return #text > MAX_LABEL and "at most 63 bytes" or clean(text)
end

local function host_name(text)
    if #text > MAX_HOST then
        return "at most 253 bytes"
    end
    for part in (text .. "."):gmatch("([^.]*)%.") do
        if #part < 1 or #part > MAX_LABEL or part:find("[^A-Za-z0-9_\128-\255-]") then
            return "a host name"
        end
    end
    return clean(text)
end

local function lower_case(text)
    return text:find("[A-Z]") and "lower case" or host_name(text)
end

local function domain(text)
    local last = text:match("%.([^.]*)$")
    if not last or not last:find("[^0-9]") then
        return "a domain of at least two labels"
    end
    local dotted = "." .. text:lower()
    for _, special in ipairs(SPECIAL_DOMAINS) do
        if dotted:sub(-#special - 1) == "." .. special then
            return "a domain that not every host has for itself"
        end
    end
    return host_name(text)
end

local function service_type(text)
    local name = text:lower():match("^_([a-z0-9-]+)%._tcp$")
    if not name or #name > 15 or name:find("^-") or name:find("-$") then
        return "a service type, _name._tcp"
    end
    return nil
end

local function txt_entry(text)
    local key, value = text:match("^([^=]*)=(.*)$")
    key = key or text
    if key == "" or key:find("[^\32-\126]") then
        return "key=value"
    end
    return clean(value or "")
end

-- What is written behind the message's name, by field.
local SHOWN = {
    max_sockets = "%.0f sockets",
    max_data = "messages up to %.0f bytes",
    service = "service %.0f",
    socket = "socket %.0f",
    tokens = "%.0f tokens",
    generation = "generation %.0f",
    window = "window %.0f",
    ping_id = "id %.0f",
    probe = "id %.0f",
    query = "query %.0f",
    reason = "reason %.0f",
}

-- A body of numbers: pairs of a field and its length. `long` fields are 8 bytes and not shown in the summary.
local function numbers(...)
    local parts = { ... }
    return function(body, message)
        local shown = {}
        for at = 1, #parts, 2 do
            local key, length = parts[at], parts[at + 1]
            if length == 8 then
                body:long(key)
            else
                local value = body:number(key, length)
                message[key] = value
                shown[#shown + 1] = string.format(SHOWN[key], value)
            end
        end
        return table.concat(shown, " ")
    end
end

local function nothing()
    return ""
end

local function migrate(body)
    local flags = body:number("flags", 4)
    if flags > 3 then
        body:fail("flags: expected 0 to 3, got %.0f", flags)
    end
    return string.format("flags %.0f", flags)
end

local function opaque(body)
    return string.format("%d bytes", body:rest("data"))
end

local function socket_data(body, message)
    message.socket = body:number("socket", 2)
    local length = body:rest("payload")
    return string.format("socket %.0f %d bytes", message.socket, length)
end

local function service_ip_map(body, message)
    message.service = body:number("service", 4)
    return string.format("service %.0f %s", message.service, body:address())
end

local function service_add(body, message, conversation)
    local kind = body:number("service_type", conversation.layout_a and 4 or 2)
    message.service = body:number("service", 4)
    local group = body:number("group", 4)
    local port = body:number("port", 4)
    local name_at = body:number("name_offset", 4)
    local description_at = body:number("description_offset", 4)
    if kind == 2 then
        body:address()
    elseif kind ~= 1 then
        body:fail("type: expected 1 (generic) or 2 (IPP), got %.0f", kind)
    end
    if port == 0 or port > 65535 then
        body:fail("port: expected 1 to 65535, got %.0f", port)
    end
    local fixed = body.at - body.start
    local texts = {
        { at = name_at, stop = body:pointed("name", name_at, fixed) },
        { at = description_at, stop = body:pointed("description", description_at, fixed) },
    }
    -- The strings are all that follows: no gap before them or between them.
    table.sort(texts, function(one, other)
        return one.at < other.at
    end)
    local stop = fixed
    for _, text in ipairs(texts) do
        if text.at > stop then
            body:fail("%.0f bytes before a string that nothing points at", text.at - stop)
        end
        stop = math.max(stop, text.stop)
    end
    if not body.fault then
        body.at = body.start + stop
    end
    return string.format("service %.0f group %.0f port %.0f", message.service, group, port)
end

-- The strings of a TXT record.
local function txt(body)
    local length = body:number("txt_length", 2)
    local stop = body.at + length
    if length > MAX_TXT then
        body:fail("TXT data: expected at most %d bytes, got %d", MAX_TXT, length)
    elseif stop > body.stop then
        body:fail("the TXT data does not fit")
    end
    local keys = {}
    while not body.fault and body.at < stop do
        local entry = body:counted("txt", txt_entry)
        local key = entry:match("^[^=]*"):lower()
        if body.at > stop then
            body:fail("an entry of the TXT data does not fit into it")
        elseif keys[key] then
            body:fail("the TXT data has a key twice")
        end
        keys[key] = true
    end
end

local function service_info(body, message)
    message.service = body:number("service", 4)
    local length = body.stop - body.at
    if length > MAX_INFO then
        body:fail("expected at most %d bytes behind the service, got %d", MAX_INFO, length)
    end
    local shown = { string.format("service %.0f", message.service) }
    shown[#shown + 1] = body:counted("identity", clean, true)
    shown[#shown + 1] = body:counted("host", host_name, true)
    local adverts = body:number("adverts", 1)
    if adverts > MAX_ADVERTS then
        body:fail("adverts: expected at most %d, got %d", MAX_ADVERTS, adverts)
    end
    for _ = 1, adverts do
        if body.fault then
            break
        end
        shown[#shown + 1] = body:counted("advert_type", service_type)
        shown[#shown + 1] = '"' .. body:counted("instance", label) .. '"'
        local subtypes = body:number("subtypes", 1)
        if subtypes > MAX_SUBTYPES then
            body:fail("subtypes: expected at most %d, got %d", MAX_SUBTYPES, subtypes)
        end
        for _ = 1, subtypes do
            body:counted("subtype", label)
        end
        txt(body)
    end
    local words = {}
    for _, word in ipairs(shown) do
        if word ~= "" then
            words[#words + 1] = word
        end
    end
    return table.concat(words, " ")
end

local function name_query(body)
    local query = body:number("query", 4)
    return string.format("query %.0f %s", query, body:counted("host", lower_case))
end

local function name_answer(body)
    local query = body:number("query", 4)
    local status = body:number("status", 1)
    local group = body:number("group", 4)
    local ttl = body:number("ttl", 4)
    local text = NAME_STATUSES[status]
    if not text then
        body:fail("status: expected 0 (found) to 3 (refused), got %d", status)
    elseif status ~= 0 and (group ~= 0 or ttl ~= 0) then
        body:fail("expected no group and no time where nothing was found")
    elseif status == 0 then
        text = string.format("found group %.0f for %.0f s", group, ttl)
    end
    return string.format("query %.0f %s", query, text or "?")
end

local function domain_name(body)
    return body:counted("host", domain)
end

local function wait_for_channels(body)
    local count = body:number("wait_count", 1)
    for _ = 1, count do
        body:number("wait_type", 1)
        body:number("wait_id", 1)
        body:long("wait_serial")
    end
    return string.format("%d channels", count)
end

local function ping(body)
    local id = body:number("ping_id", 4)
    body:long("timestamp")
    local padding = body:rest("padding")
    return string.format("id %.0f %d bytes of padding", id, padding)
end

local function notify(body)
    body:long("timestamp")
    local severity = body:number("severity", 4)
    local visibility = body:number("visibility", 4)
    body:number("what", 4)
    local length = body:number("text_length", 4)
    if severity > 2 then
        body:fail("severity: expected 0 to 2, got %.0f", severity)
    elseif visibility > 2 then
        body:fail("visibility: expected 0 to 2, got %.0f", visibility)
    end
    if length == 0 then
        return ""
    end
    local range = body:take(length, "text")
    if not range then
        return ""
    end
    body.tree:add(f.text, range)
    -- libspice-server ends the text with a NUL that the length does not count.
    if body.at < body.stop and body.tvb(body.at, 1):uint() == 0 then
        body.at = body.at + 1
    end
    return '"' .. range:string() .. '"'
end

local sub_messages

-- LIST: nothing but sub-messages.
local function list(body, message, conversation)
    message.sub_list = 0
    sub_messages(body, 0, conversation)
    body.at = body.stop
    return ""
end

local SERVER_BODIES = {
    migrate = migrate,
    migrate_data = opaque,
    set_ack = numbers("generation", 4, "window", 4),
    ping = ping,
    wait_for_channels = wait_for_channels,
    disconnecting = numbers("timestamp", 8, "reason", 4),
    notify = notify,
    list = list,
    init = numbers("max_sockets", 2, "max_data", 4),
    service_ip_map = service_ip_map,
    socket_open = numbers("socket", 2, "service", 4, "tokens", 4),
    socket_fin = numbers("socket", 2),
    socket_close = numbers("socket", 2),
    socket_data = socket_data,
    socket_closed_ack = numbers("socket", 2),
    socket_token = numbers("socket", 2, "tokens", 4),
    probe_ack = numbers("probe", 4),
    name_query = name_query,
}

local CLIENT_BODIES = {
    ack_sync = numbers("generation", 4),
    ack = nothing,
    pong = numbers("ping_id", 4, "timestamp", 8),
    migrate_flush_mark = nothing,
    migrate_data = opaque,
    disconnecting = numbers("timestamp", 8, "reason", 4),
    service_add = service_add,
    service_remove = numbers("service", 4),
    socket_open_ack = numbers("socket", 2, "tokens", 4),
    socket_open_nack = numbers("socket", 2),
    socket_fin = numbers("socket", 2),
    socket_closed = numbers("socket", 2),
    socket_closed_ack = numbers("socket", 2),
    socket_data = socket_data,
    socket_token = numbers("socket", 2, "tokens", 4),
    socket_reset = numbers("socket", 2),
    probe = numbers("probe", 4),
    service_info = service_info,
    name_answer = name_answer,
    domain_add = domain_name,
    domain_remove = domain_name,
}

local SIDES = {
    client = { names = CLIENT_MESSAGES, bodies = CLIENT_BODIES },
    server = { names = SERVER_MESSAGES, bodies = SERVER_BODIES },
}

-- Reads a body whose message has a name. Gives the summary.
local function read_body(side, name, body, message, conversation)
    local summary = SIDES[side].bodies[name](body, message, conversation)
    if not body.fault and body.at < body.stop then
        body:fail("%d bytes too many: expected a body of %d, got %d", body.stop - body.at, body.at - body.start,
            body.stop - body.start)
    end
    if body.fault then
        body.tree:add_proto_expert_info(malformed, name .. ": " .. body.fault)
    end
    return summary
end

-- The sub-messages that a list at `offset` of a body names. Only servers send them.
sub_messages = function(body, offset, conversation)
    local tvb, start, stop = body.tvb, body.start, body.stop
    local length = stop - start
    if offset + 2 > length then
        return body:fail("offset of the list of sub-messages: expected up to %d, got %.0f", length - 2, offset)
    end
    local count = tvb(start + offset, 2):le_uint()
    if offset + 2 + 4 * count > length then
        return body:fail("the list of %d sub-messages does not fit into a body of %d bytes", count, length)
    end
    -- What the sub-messages may take up together: or one long one could be named thousands of times.
    local budget = length - (offset + 2 + 4 * count)
    for index = 0, count - 1 do
        local at = tvb(start + offset + 2 + 4 * index, 4):le_uint()
        if at + MINI_HEADER_LEN > length then
            return body:fail("sub-message %d at offset %.0f does not fit into a body of %d bytes", index, at, length)
        end
        local kind = tvb(start + at, 2):le_uint()
        local size = tvb(start + at + 2, 4):le_uint()
        budget = budget - (MINI_HEADER_LEN + size)
        if at + MINI_HEADER_LEN + size > length or budget < 0 then
            return body:fail("sub-message %d of %.0f bytes does not fit into a body of %d bytes", index, size, length)
        end
        local name = SERVER_MESSAGES[kind]
        if name == "list" then
            return body:fail("a list of sub-messages in a list")
        end
        local tree = body.tree:add(f.sub_message, tvb(start + at, MINI_HEADER_LEN + size), name or "unknown")
        tree:add_le(f.sub_type, tvb(start + at, 2))
        tree:add_le(f.sub_size, tvb(start + at + 2, 4))
        local inner = Reader.new(tvb, start + at + MINI_HEADER_LEN, start + at + MINI_HEADER_LEN + size, tree)
        if name then
            tree:append_text(" " .. read_body("server", name, inner, {}, conversation))
        else
            tree:add_proto_expert_info(unknown, string.format("no message of the server has the number %d", kind))
            inner:rest("body")
        end
    end
end

-- Conversations. Wireshark reads a file once from its start, and then any packet in any order, as often as it likes. So all
-- that has to be remembered is learnt in the first pass and kept by frame: `stages` says which step of the link stage begins
-- at a place of a frame (where it says nothing, there is a message of the data stage), `connections` to which connection the
-- message there belongs.

local conversations = {}

function spice_tunnel.init()
    conversations = {}
end

local function source(pinfo)
    return tostring(pinfo.src) .. " " .. pinfo.src_port
end

local function destination(pinfo)
    return tostring(pinfo.dst) .. " " .. pinfo.dst_port
end

-- The number of the TCP connection that we are in: the innermost, should there be one in another.
local function stream_number()
    local all = { tcp_stream() }
    local last = all[#all]
    return last and last.value
end

local function new_conversation(stream, client)
    local conversation = {
        client_source = client,
        stage = { client = "link_mess", server = "link_reply" },
        stages = {},
        connections = {},
        sockets = {},
        opened = 0,
    }
    conversations[stream] = conversation
    return conversation
end

-- Where something begins. One frame can hold the end of a reassembled piece and more behind it, or several TLS records, so
-- the place alone does not say it.
local function place(tvb, offset, pinfo)
    return string.format("%d/%d/%d", pinfo.number, tvb:offset() + offset, tvb:len())
end

local function remember_stage(conversation, tvb, offset, pinfo, stage)
    if not pinfo.visited then
        conversation.stages[place(tvb, offset, pinfo)] = stage
    end
end

local function stage_at(conversation, side, tvb, offset, pinfo)
    if pinfo.visited then
        return conversation.stages[place(tvb, offset, pinfo)] or "data"
    end
    return conversation.stage[side]
end

local function has_bit(word, bit)
    return math.floor(word / 2 ^ bit) % 2 == 1
end

-- One item of the tree for each message, of the link stage or behind it.
local function add_item(root, range, side, name)
    local item = root:add(spice_tunnel, range, "Spice tunnel, " .. side .. ": " .. name)
    item:add(f.from, side):set_generated()
    item:add(f.message, name):set_generated()
    return item
end

-- The capability words of a link message or reply. Gives the first word of each kind, 0 for none.
local function capabilities(tree, tvb, start, size, common, channel, offset)
    local first = { common = 0, channel = 0 }
    if common + channel == 0 then
        return first
    end
    if offset + 4 * (common + channel) > size then
        tree:add_proto_expert_info(malformed, string.format(
            "%.0f capability words at offset %.0f do not fit into %d bytes", common + channel, offset, size))
        return first
    end
    local at = start + offset
    for _, words in ipairs({
        { kind = "common", count = common, key = "link.common_caps", bits = COMMON_CAP_FIELDS },
        { kind = "channel", count = channel, key = "link.channel_caps", bits = TUNNEL_CAP_FIELDS },
    }) do
        for index = 0, words.count - 1 do
            local range = tvb(at, 4)
            local item = tree:add_le(f[words.key], range)
            if index == 0 then
                first[words.kind] = range:le_uint()
                for bit = 0, #words.bits do
                    item:add_le(words.bits[bit], range)
                end
            end
            at = at + 4
        end
    end
    return first
end

-- A step of the link stage: what stands at `offset`, of which `left` bytes are here. Gives how long it is, or nil and how many
-- bytes are missing.
local link = {}

-- Header and what it announces, common to message and reply.
local function link_header(tvb, offset, left, least)
    if left < LINK_HEADER_LEN then
        return nil, LINK_HEADER_LEN - left
    end
    local size = tvb(offset + 12, 4):le_uint()
    if tvb(offset, 4):string() ~= MAGIC then
        return nil, nil, 'expected a link header with "REDQ"'
    end
    if size < least or size > LINK_MAX then
        return nil, nil, string.format("size behind the link header: expected %d to %d, got %.0f", least, LINK_MAX, size)
    end
    if left < LINK_HEADER_LEN + size then
        return nil, LINK_HEADER_LEN + size - left
    end
    return size
end

local function add_link_header(item, tvb, offset)
    item:add_le(f["link.major"], tvb(offset + 4, 4))
    item:add_le(f["link.minor"], tvb(offset + 8, 4))
    item:add_le(f.size, tvb(offset + 12, 4))
end

function link.link_mess(conversation, tvb, offset, left, root)
    local size, missing, fault = link_header(tvb, offset, left, LINK_MESS_LEN)
    if not size then
        return nil, missing, fault
    end
    local item = add_item(root, tvb(offset, LINK_HEADER_LEN + size), "client", "link_mess")
    add_link_header(item, tvb, offset)
    local at = offset + LINK_HEADER_LEN
    item:add_le(f["link.session_id"], tvb(at, 4))
    item:add_le(f["link.channel_type"], tvb(at + 4, 1))
    item:add_le(f["link.channel_id"], tvb(at + 5, 1))
    item:add_le(f["link.num_common_caps"], tvb(at + 6, 4))
    item:add_le(f["link.num_channel_caps"], tvb(at + 10, 4))
    item:add_le(f["link.caps_offset"], tvb(at + 14, 4))
    local caps = capabilities(item, tvb, at, size, tvb(at + 6, 4):le_uint(), tvb(at + 10, 4):le_uint(),
        tvb(at + 14, 4):le_uint())
    -- The version of early 2010: no capabilities, so always the full header, and the other layout of SERVICE_ADD.
    conversation.layout_a = tvb(offset + 4, 4):le_uint() == 0xfffffffe and tvb(offset + 8, 4):le_uint() == 3
    conversation.client_caps = caps.common
    conversation.full_header = true
    return LINK_HEADER_LEN + size, nil, nil, "link_mess", "after_mess"
end

function link.link_reply(conversation, tvb, offset, left, root)
    local size, missing, fault = link_header(tvb, offset, left, LINK_REPLY_LEN)
    if not size then
        return nil, missing, fault
    end
    local item = add_item(root, tvb(offset, LINK_HEADER_LEN + size), "server", "link_reply")
    add_link_header(item, tvb, offset)
    local at = offset + LINK_HEADER_LEN
    local code = tvb(at, 4):le_uint()
    item:add_le(f["link.error"], tvb(at, 4))
    item:add(f["link.public_key"], tvb(at + 4, PUBLIC_KEY_LEN))
    local behind_key = at + 4 + PUBLIC_KEY_LEN
    item:add_le(f["link.num_common_caps"], tvb(behind_key, 4))
    item:add_le(f["link.num_channel_caps"], tvb(behind_key + 4, 4))
    item:add_le(f["link.caps_offset"], tvb(behind_key + 8, 4))
    if code ~= 0 then
        local name = LINK_CODES[code] or tostring(code)
        item:add_proto_expert_info(refused, "link refused: " .. name)
        return LINK_HEADER_LEN + size, nil, nil, "link_reply " .. name, "over"
    end
    local caps = capabilities(item, tvb, at, size, tvb(behind_key, 4):le_uint(), tvb(behind_key + 4, 4):le_uint(),
        tvb(behind_key + 8, 4):le_uint())
    conversation.server_caps = caps.common
    conversation.full_header = not (has_bit(caps.common, 3) and has_bit(conversation.client_caps or 0, 3))
    return LINK_HEADER_LEN + size, nil, nil, "link_reply", "link_result"
end

-- Behind the link message: whether a mechanism or the ticket itself comes, depends on the capabilities of both. A client may
-- send the mechanism before it has the reply.
function link.after_mess(conversation, tvb, offset, left, root)
    if left < WORD_LEN then
        return nil, WORD_LEN - left
    end
    local chosen = has_bit(conversation.client_caps or 0, 0)
    if chosen and conversation.server_caps then
        chosen = has_bit(conversation.server_caps, 0)
    elseif chosen then
        chosen = MECHANISMS[tvb(offset, WORD_LEN):le_uint()] ~= nil
    end
    if chosen then
        return link.auth_mechanism(conversation, tvb, offset, left, root)
    end
    return link.ticket(conversation, tvb, offset, left, root)
end

function link.auth_mechanism(conversation, tvb, offset, left, root)
    local mechanism = tvb(offset, WORD_LEN):le_uint()
    local item = add_item(root, tvb(offset, WORD_LEN), "client", "auth_mechanism")
    item:add(f.size, WORD_LEN):set_generated()
    item:add_le(f["link.mechanism"], tvb(offset, WORD_LEN))
    local name = MECHANISMS[mechanism]
    if not name then
        item:add_proto_expert_info(malformed, string.format("expected mechanism 1 or 2, got %.0f", mechanism))
    end
    if mechanism == 2 then
        conversation.stage.server = conversation.stage.server == "link_result" and "sasl" or conversation.stage.server
        return WORD_LEN, nil, nil, "auth_mechanism SASL", "sasl"
    end
    return WORD_LEN, nil, nil, "auth_mechanism " .. (name or "?"), "ticket"
end

function link.ticket(_, tvb, offset, left, root)
    if left < TICKET_LEN then
        return nil, TICKET_LEN - left
    end
    local item = add_item(root, tvb(offset, TICKET_LEN), "client", "ticket")
    item:add(f.size, TICKET_LEN):set_generated()
    item:add(f["link.ticket"], tvb(offset, TICKET_LEN))
    return TICKET_LEN, nil, nil, "ticket", "data"
end

function link.link_result(conversation, tvb, offset, left, root)
    if left < WORD_LEN then
        return nil, WORD_LEN - left
    end
    -- An unknown mechanism is answered by a second link reply, which refuses.
    if tvb(offset, 4):string() == MAGIC then
        return link.link_reply(conversation, tvb, offset, left, root)
    end
    local code = tvb(offset, WORD_LEN):le_uint()
    local item = add_item(root, tvb(offset, WORD_LEN), "server", "link_result")
    item:add(f.size, WORD_LEN):set_generated()
    item:add_le(f["link.result"], tvb(offset, WORD_LEN))
    local name = LINK_CODES[code] or tostring(code)
    if code ~= 0 then
        item:add_proto_expert_info(refused, "link refused: " .. name)
    end
    return WORD_LEN, nil, nil, "link_result " .. name, code == 0 and "data" or "over"
end

-- A SASL exchange can hold a password, and may wrap all that follows: it is not looked into.
local function sasl(_, tvb, offset, left, root, side)
    local item = add_item(root, tvb(offset, left), side, "sasl")
    item:add(f.size, left):set_generated()
    item:add(f["link.sasl"], tvb(offset, left))
    return left, nil, nil, "sasl", "sasl"
end

local function behind_refusal(_, tvb, offset, left, root, side)
    local item = add_item(root, tvb(offset, left), side, "malformed")
    item:add_proto_expert_info(malformed, string.format("%d bytes behind a refused link", left))
    return left, nil, nil, "malformed", "over"
end

local STEPS = {
    link_mess = link.link_mess,
    after_mess = link.after_mess,
    ticket = link.ticket,
    link_reply = link.link_reply,
    link_result = link.link_result,
    sasl = sasl,
    over = behind_refusal,
}

-- Which connection a message belongs to. Learnt in the first pass.
local function connection_of(conversation, side, name, message, tvb, offset, pinfo)
    local here = place(tvb, offset, pinfo)
    if pinfo.visited then
        return conversation.connections[here]
    end
    local connection
    if name == "socket_open" then
        connection = { number = conversation.opened, service = message.service, opened_in = pinfo.number }
        conversation.opened = conversation.opened + 1
        conversation.sockets[message.socket] = connection
    else
        connection = conversation.sockets[message.socket]
    end
    if connection and (name == "socket_open_ack" or name == "socket_open_nack") then
        connection.answered_in = connection.answered_in or pinfo.number
    end
    conversation.connections[here] = connection
    return connection
end

-- A message of the data stage.
local function data_message(conversation, tvb, offset, left, root, side, pinfo)
    local header_length = conversation.full_header and FULL_HEADER_LEN or MINI_HEADER_LEN
    if left < header_length then
        return nil, nil
    end
    local at = conversation.full_header and offset + 8 or offset
    local kind = tvb(at, 2):le_uint()
    local size = tvb(at + 2, 4):le_uint()
    if kind == 0 or size > MAX_BODY then
        return nil, nil, string.format("expected a message's header, got type %d and size %.0f", kind, size)
    end
    if left < header_length + size then
        return nil, header_length + size - left
    end
    local name = SIDES[side].names[kind]
    local item = add_item(root, tvb(offset, header_length + size), side, name or "unknown")
    if conversation.full_header then
        item:add_le(f.serial, tvb(offset, 8))
    end
    local type_item = item:add_le(f.type, tvb(at, 2))
    type_item:append_text(" (" .. (name or "unknown") .. ")")
    item:add_le(f.size, tvb(at + 2, 4))
    local sub_list = 0
    if conversation.full_header then
        sub_list = tvb(at + 6, 4):le_uint()
        local sub_item = item:add_le(f.sub_list, tvb(at + 6, 4))
        if side == "client" and sub_list ~= 0 then
            -- The clients of 2010 sent what their memory held.
            sub_item:append_text(" (means nothing from a client)")
            sub_list = 0
        end
    end
    local body = Reader.new(tvb, offset + header_length, offset + header_length + size, item)
    if not name then
        item:add_proto_expert_info(unknown, string.format("no message of the %s has the number %d", side, kind))
        body:rest("body")
        return header_length + size, nil, nil, string.format("unknown %d, %.0f bytes", kind, size)
    end
    if sub_list ~= 0 then
        sub_messages(Reader.new(tvb, body.start, body.stop, item), sub_list, conversation)
        body.stop = math.min(body.stop, body.start + sub_list)
    end
    local message = {}
    local summary = read_body(side, name, body, message, conversation)
    if message.socket then
        local connection = connection_of(conversation, side, name, message, tvb, offset, pinfo)
        if connection then
            item:add(f.connection, connection.number):set_generated()
            if not message.service then
                item:add(f.service, connection.service):set_generated()
            end
            if connection.opened_in ~= pinfo.number then
                item:add(f.opened_in, connection.opened_in):set_generated()
            end
            if name == "socket_open" and connection.answered_in then
                item:add(f.answered_in, connection.answered_in):set_generated()
            end
        end
    end
    local text = summary == "" and name or name .. " " .. summary
    item:set_text("Spice tunnel, " .. side .. ": " .. text)
    return header_length + size, nil, nil, text
end

local function write_columns(pinfo, side, texts)
    if #texts == 0 then
        return
    end
    local text = table.concat(texts, ", ")
    if pinfo.private.spice_tunnel == tostring(pinfo.number) then
        text = ", " .. text
    else
        pinfo.private.spice_tunnel = tostring(pinfo.number)
        text = side .. ": " .. text
    end
    pinfo.cols.protocol = "SPICE-TUNNEL"
    pinfo.cols.info = text
    pinfo.cols.info:fence()
end

-- All messages in a piece of the stream. Asks for more where one goes on behind it.
local function dissect(conversation, tvb, pinfo, root)
    local side = source(pinfo) == conversation.client_source and "client" or "server"
    local offset, stop = 0, tvb:len()
    local texts = {}
    while offset < stop do
        local left = stop - offset
        local stage = stage_at(conversation, side, tvb, offset, pinfo)
        local step = STEPS[stage]
        local length, missing, fault, text, next_stage
        if step then
            length, missing, fault, text, next_stage = step(conversation, tvb, offset, left, root, side)
        else
            length, missing, fault, text = data_message(conversation, tvb, offset, left, root, side, pinfo)
        end
        if length then
            if step then
                remember_stage(conversation, tvb, offset, pinfo, stage)
                if not pinfo.visited then
                    conversation.stage[side] = next_stage
                end
            end
            texts[#texts + 1] = text
            offset = offset + length
        elseif fault then
            local item = add_item(root, tvb(offset, left), side, "malformed")
            item:add_proto_expert_info(malformed, fault)
            remember_stage(conversation, tvb, offset, pinfo, step and stage)
            texts[#texts + 1] = "malformed: " .. fault
            offset = stop
        elseif pinfo.can_desegment > 0 and tvb:reported_len() == stop then
            pinfo.desegment_offset = offset
            pinfo.desegment_len = missing or DESEGMENT_ONE_MORE_SEGMENT
            write_columns(pinfo, side, texts)
            return stop
        else
            local item = add_item(root, tvb(offset, left), side, "incomplete")
            item:add_proto_expert_info(incomplete, "the capture does not have all of this message, or reassembly is off")
            remember_stage(conversation, tvb, offset, pinfo, step and stage)
            texts[#texts + 1] = "incomplete"
            offset = stop
        end
    end
    write_columns(pinfo, side, texts)
    return stop
end

-- Whether these bytes begin a link message for a tunnel: true, false, or nil if there are too few to tell.
local function asks_for_tunnel(tvb)
    local length = tvb:len()
    local shown = math.min(length, #MAGIC)
    if length == 0 or tvb(0, shown):string() ~= MAGIC:sub(1, shown) then
        return false
    end
    if length < LINK_HEADER_LEN + 5 then
        return nil
    end
    local size = tvb(12, 4):le_uint()
    -- A link reply, which has the same header, is longer than any link message that is seen.
    return size >= LINK_MESS_LEN and size <= LINK_MAX and tvb(LINK_HEADER_LEN + 4, 1):uint() == TUNNEL_CHANNEL
end

-- Whether these bytes, which may have been put together of several segments, are the first of their direction.
local function at_start_of_stream(tvb)
    local all = { tcp_next() }
    local last = all[#all]
    return last and last.value == 1 + tvb:len()
end

-- Which conversation this piece belongs to: that of a tunnel, or nil. The second result is true if more bytes are needed to
-- tell, which have been asked for.
local function find_conversation(tvb, pinfo)
    local stream = stream_number()
    if not stream then
        return nil, false
    end
    if conversations[stream] then
        return conversations[stream], false
    end
    local ours = asks_for_tunnel(tvb)
    if ours then
        return new_conversation(stream, source(pinfo)), false
    end
    if ours == nil and pinfo.can_desegment > 0 and (tvb:len() >= #MAGIC or at_start_of_stream(tvb)) then
        pinfo.desegment_offset = 0
        pinfo.desegment_len = DESEGMENT_ONE_MORE_SEGMENT
        return nil, true
    end
    return nil, false
end

local function is_spice(tvb)
    return tvb:len() >= #MAGIC and tvb(0, #MAGIC):string() == MAGIC
end

-- Wireshark asks that heuristic dissector first which was the last to find something. Had its own for Spice found a main channel,
-- it would get the tunnel's link message too. So whatever is Spice is claimed here, and what is not a tunnel handed on, by having
-- Wireshark ask all the others; after which we come to the front again by claiming a made-up byte.
local handing_on, coming_to_front = false, false

local function hand_on(tvb, pinfo, root)
    handing_on = true
    local found = DissectorTable.try_heuristics("tcp", tvb, pinfo, root)
    if found then
        coming_to_front = true
        DissectorTable.try_heuristics("tcp", ByteArray.new("00"):tvb("nothing"), pinfo, root)
        coming_to_front = false
    end
    handing_on = false
    return found
end

local function over_tcp(tvb, pinfo, root)
    if handing_on then
        return coming_to_front
    end
    local conversation, more = find_conversation(tvb, pinfo)
    if conversation then
        -- All further segments come straight to the dissector.
        pinfo.conversation = spice_tunnel
        dissect(conversation, tvb, pinfo, root)
        return true
    end
    return more or (is_spice(tvb) and hand_on(tvb, pinfo, root))
end

-- Here the conversation stays with the TLS dissector, and Wireshark's own for Spice knows nothing of TLS.
local function over_tls(tvb, pinfo, root)
    local conversation, more = find_conversation(tvb, pinfo)
    if conversation then
        dissect(conversation, tvb, pinfo, root)
        return true
    end
    return more
end

-- For a capture that begins behind the link stage: whether a message of this side may begin here.
local function may_be_message(tvb, side, full)
    local at = full and 8 or 0
    if tvb:len() < at + 6 then
        return false
    end
    return SIDES[side].names[tvb(at, 2):le_uint()] ~= nil and tvb(at + 2, 4):le_uint() <= MAX_BODY
end

local function guess_conversation(tvb, pinfo)
    local stream = stream_number()
    if not stream then
        return nil
    end
    -- Decode As has said which port is the server's.
    local side = pinfo.match_uint == pinfo.src_port and "server" or "client"
    for _, full in ipairs({ true, false }) do
        if may_be_message(tvb, side, full) then
            local conversation = new_conversation(stream, side == "client" and source(pinfo) or destination(pinfo))
            conversation.stage = { client = "data", server = "data" }
            conversation.full_header = full
            return conversation
        end
    end
    return nil
end

-- Decode As, and all segments of a connection that is known. What is not a tunnel is declined, and so goes to the heuristics.
function spice_tunnel.dissector(tvb, pinfo, root)
    local conversation, more = find_conversation(tvb, pinfo)
    if not conversation and not more and not is_spice(tvb) then
        conversation = guess_conversation(tvb, pinfo)
    end
    if conversation then
        return dissect(conversation, tvb, pinfo, root)
    end
    return more and tvb:len() or 0
end

spice_tunnel:register_heuristic("tcp", over_tcp)
spice_tunnel:register_heuristic("tls", over_tls)
DissectorTable.get("tcp.port"):add_for_decode_as(spice_tunnel)
