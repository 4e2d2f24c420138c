"""Where people are reached: e-mail addresses, IP addresses, telephone numbers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

import regex

from align.cleaning.library import library
from align.cleaning.private.found import Stretch, is_called, one_of

EMAIL = regex.compile(
    r"(?<![\p{Latin}0-9._%+\-/@])[\p{Latin}0-9][\p{Latin}0-9._%+'\-]*@"
    r"(?:[\p{Latin}0-9](?:[\p{Latin}0-9\-]*[\p{Latin}0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9@])"
)
SPELT = re.compile(
    r"\b[A-Za-z0-9][\w.+-]*\s?[\[({]\s?at\s?[\])}]\s?[A-Za-z0-9-]+(?:(?:\s?[\[({]\s?dot\s?[\])}]\s?|\.)[A-Za-z0-9-]+)+",
    re.IGNORECASE,
)
"""name [at] example [dot] org"""
FILES = {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "py", "json", "html", "md", "txt", "zip", "pdf"}
"""Endings of files, as in icon@2x.png."""
IPV4 = re.compile(r"(?<![A-Za-z0-9_.])(?<!\d-)(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_]|\.\d|-[A-Za-z0-9_])")
IPV6 = re.compile(r"(?<![A-Za-z0-9_.])(?<![0-9a-fA-F:]:)(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![A-Za-z0-9_:])")
NOT_IP = one_of(
    "v|version|versions|ver|release|released|build|section|sections|chapter|clause|article|oid|upgrade|driver|firmware|"
    "python|node|chrome|kernel|版本|版|章|节|条|نسخه|بخش|فصل|ویرایش"
)
IS_IP = one_of(
    "ip|ips|ipv4|address|host|server|dns|gateway|ping|subnet|login|from|client|proxy|地址|服务器|主机|登录|"
    "آی‌پی|آی پی|سرور|نشانی|آدرس"
)
LOCAL = [
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "fc00::/7", "fe80::/10"
    )
]  # fmt: skip
"""Addresses that every house may give its machines (RFC 1918, 3927, 6598, 4193, 4291): they lead to nobody, and stand
in manuals and code. datatrove leaves them as well (`only_remove_public_ips`)."""


def emails(text: str) -> Iterator[Stretch]:
    for match in EMAIL.finditer(text):
        name, _, domain = match[0].rpartition("@")
        before = text[: match.start()].rpartition(" ")[2].rpartition("\n")[2]
        is_url = "://" in before
        is_remote = name == "git" or text[match.end() : match.end() + 2].strip(":/").startswith("~")
        if not (is_url or is_remote or domain.rpartition(".")[2].lower() in FILES or ".." in name):
            yield Stretch(match.start(), match.end(), "email")
    for match in SPELT.finditer(text):
        yield Stretch(match.start(), match.end(), "email")


def addresses(text: str) -> Iterator[Stretch]:
    """IP addresses of machines; a version such as 1.2.3.4 is none, nor is what many have (127.0.0.1, `LOCAL`)."""
    for match in [*IPV4.finditer(text), *IPV6.finditer(text)]:
        if _is_address(text, match):
            yield Stretch(match.start(), match.end(), "ip")


def _is_address(text: str, match: re.Match[str]) -> bool:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or address.is_multicast or match[0].startswith("255."):
        return False
    if any(address in network for network in LOCAL):
        return False
    before = text[max(0, match.start() - 24) : match.start()]
    own = [m.end() for m in IS_IP.finditer(before)]
    other = [m.end() for m in NOT_IP.finditer(before)]
    if own or other:
        return max(own, default=-1) > max(other, default=-1)
    if isinstance(address, ipaddress.IPv6Address):
        groups = [group for group in match[0].split(":") if group]
        return len(groups) >= 3 or (len(groups) == 2 and any(len(group) == 4 for group in groups))
    return any(len(octet) > 1 for octet in match[0].split("."))


NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.,/+#=$€£¥<-])(?<!\d[ :])(?:\+|00)?\(?\d(?:[\d() ./-]{5,20})\d(?![A-Za-z0-9_]|[.,:/-]\d)"
)
IS_PHONE = one_of(
    "phone|telephone|tel|mobile|my cell|cell number|cellphone|fax|whatsapp|call me|call us|call him|call her|call them|"
    "text me|reach me|reach us|reach him|reach her|ring me|hotline|phone number|contact number|"
    "电话|手机|致电|拨打|传真|联系|热线|座机|微信|打给|"
    "تلفن|موبایل|همراه|تماس|فکس|واتساپ|زنگ|پیامک|هاتف|جوال"
)
DATE = re.compile(r"\(?(?:\d{4}[-/. ]\d{1,2}[-/. ]\d{1,2}|\d{1,2}[-/. ]\d{1,2}[-/. ]\d{4})(?: \d{1,2})?\)?")
YEARS = re.compile(r"(?:1[3-9]|20)\d\d ?[-/] ?(?:1[3-9]|20)\d\d")
MOBILE = re.compile(
    r"1[3-9]\d[ -]?\d{4}[ -]?\d{4}|09[0-39]\d[ -]?\d{3}[ -]?\d{2}[ -]?\d{2}|09[0-39]\d[ -]?\d{3}[ -]?\d{4}"
)
"""Mobile numbers of China and Iran, which stand alone as they are."""
SHAPED = re.compile(
    r"\(\d{2,5}\) ?\d{2,4}(?:[ -]?\d{2,5}){1,3}|\d{3}-\d{3}-\d{4}|\d{3}\.\d{3}\.\d{4}"
    r"|0\d{1,4}[ /-]\d{3,8}(?:[ -]\d{2,4})*|0\d(?:[ .]\d{2}){4}|0\d{2,4} \d{3} \d{3,4}|1-\d{3}-\d{3}-\d{4}"
)
"""Numbers that are written as telephone numbers are."""
REGIONS = ("US", "GB", "DE", "FR", "IN", "CN", "IR", "TW", "HK", "JP", "SA", "AE", "IT", "ES", "AU", "BR", "TR", "RU")
"""Countries in which a number without a country's code may be one."""


def phones(text: str) -> Iterator[Stretch]:
    """Telephone numbers by phonenumbers (Google's libphonenumber): with the code of a country; written or called as
    one."""
    for match in NUMBER.finditer(text):
        number = match[0].rstrip("( -./")
        if number.count("(") != number.count(")"):
            number = number.lstrip("(") if number.startswith("(") else number.rpartition("(")[0].rstrip(" -")
        start = text.index(number, match.start())
        if number and _is_phone(text, start, number):
            yield Stretch(start, start + len(number), "phone")


def _is_phone(text: str, start: int, number: str) -> bool:
    digits = sum(map(str.isdigit, number))
    is_shaped = bool(SHAPED.fullmatch(number))
    if not 7 <= digits <= 15 or ("/" in number and not is_shaped) or DATE.fullmatch(number) or YEARS.fullmatch(number):
        return False
    if number.startswith("+"):
        return _is_valid(number, None)
    called = is_called(text, start, start + len(number), IS_PHONE)
    if called is False:
        return False
    if number.startswith("00"):
        return _is_valid("+" + number[2:], None)
    if called:
        return digits <= 8 or any(_is_valid(number, region) for region in REGIONS) or is_shaped
    if MOBILE.fullmatch(number):
        region = "CN" if number.startswith("1") else "IR"
        return _is_valid(number, region)
    return is_shaped and digits >= 9 and any(_is_valid(number, region) for region in REGIONS)


def _is_valid(number: str, region: str | None) -> bool:
    phonenumbers = library("phonenumbers", "Finding telephone numbers")
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(number, region)))
    except phonenumbers.NumberParseException:
        return False
