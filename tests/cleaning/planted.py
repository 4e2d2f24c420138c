"""Private data planted in sentences of three languages, and what only looks like them.

Check digits are computed here, digit by digit, and not by what is tested; national ids of other countries are the
examples of python-stdnum's own documentation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

Case = tuple[str, str, str]
"""(kind, what is planted, the text that holds it)."""
FARSI = str.maketrans("0123456789", "۰۱۲۳۴۵۶۷۸۹")
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")

SENTENCES = {
    "email": [
        "Please write to {} before Friday.", "My address is {}.", "Contact: {}, thanks", "({})", "<{}>",
        "mailto:{}",
        "请发邮件到{}，谢谢。", "我的邮箱是{}", "邮箱：{}。有问题随时联系", "لطفا به {} ایمیل بزنید.",
        "ایمیل من: {}", "نشانی {} است",
    ],
    "phone": [
        "Call me at {} tonight.", "Phone: {}", "You can reach us on {}, 9 to 5.", "Tel. {} (office)",
        "WhatsApp {}",
        "我的电话是{}。", "请拨打{}联系客服", "手机：{}", "联系电话{}，周一至周五", "تلفن من {} است.",
        "با شماره {} تماس بگیرید.", "موبایل: {}",
    ],
    "ip": [
        "The login came from {} at noon.", "Server {} is down.", "Block the address {}.", "Connected to {} now",
        "ping {} failed", "服务器地址是{}。", "登录IP：{}", "请检查主机{}的日志", "از نشانی {} وارد شد.",
        "آی‌پی سرور {} است", "سرور {} پاسخ نمی‌دهد",
        "client {} requested the page",
    ],
    "card": [
        "My card number is {}.", "Charge {} please.", "Visa {} exp 12/29", "I paid with {} yesterday.", "Card: {}",
        "我的银行卡号是{}。", "信用卡{}，有效期12/29", "请从{}扣款", "卡号：{}", "شماره کارت من {} است.",
        "به کارت {} واریز کنید.", "کارت: {}",
    ],
    "iban": [
        "Send it to {} today.", "IBAN: {}", "The account {} is mine.", "Transfer to {}, please.", "({})",
        "My IBAN is {}.",
        "请汇款到{}。", "账户{}已开通", "国际账号：{}", "شماره شبا {} است.", "به حساب {} واریز کنید.", "شبا: {}",
    ],
    "national_id": [
        "My national id is {}.", "ID number: {}", "Her identity card says {}, I think.",
        "The citizen with {} came.",
        "Personal number {} was entered.", "我的身份证号是{}。", "身份证：{}", "他的身份证号码为{}，请核对",
        "کد ملی من {} است.",
        "شماره ملی: {}", "با کد ملی {} ثبت شد.", "national id {} on file",
    ],
}  # fmt: skip

DOCUMENTED = [
    "390-09-5264", "123.456.789-09", "RCCMNL83S18D969H", "54362315-K", "x-2482300w", "2 95 10 99 126 111 93",
    "971013-9019902", "131052-308T", "BOXW310820HNERXN09", "85.07.30-033.28", "85 07 30 033 28", "234123412346",
    "44051401359",
    "17291716060", "36 574 261 809", "111222333", "123-456-782", "943 476 5870", "880320-0016", "211062-5629",
    "151086 95088", "8001015009087", "1630615123457", "500100732259", "1234 5678 9018", "1-2345-45678-78-1",
    "34201-0891231-8", "12.531.909-2", "3171011708450001", "3933742-3", "770305-02-1234", "ACUPA7085R",
]  # fmt: skip
"""Valid numbers of python-stdnum's docstrings."""


def luhn(head: str) -> str:
    """Digits and their check digit, from the right every other one doubled."""
    total = 0
    for i, d in enumerate(reversed(head)):
        n = int(d) * (2 if i % 2 == 0 else 1)
        total += n - 9 if n > 9 else n
    return head + str(-total % 10)


def grouped(digits: str, by: int, sep: str) -> str:
    return sep.join(digits[i : i + by] for i in range(0, len(digits), by))


def digits(draw: random.Random, n: int) -> str:
    return "".join(draw.choices("0123456789", k=n))


def card(draw: random.Random) -> str:
    head = draw.choice(["4539", "4716", "5105", "5425", "2223", "6011", "6221", "6228", "3530", "603799", "622106"])
    found = luhn(head + digits(draw, 15 - len(head)))
    if draw.random() < 0.15:
        amex = luhn("37" + digits(draw, 12))
        return draw.choice([amex, f"{amex[:4]} {amex[4:10]} {amex[10:]}"])
    return draw.choice([found, grouped(found, 4, " "), grouped(found, 4, "-")])


def iban(draw: random.Random) -> str:
    country, body = draw.choice(
        [("DE", digits(draw, 18)), ("IR", "0" + digits(draw, 21)), ("SA", "80" + digits(draw, 18)),
         ("AT", digits(draw, 16)), ("TR", "000610" + digits(draw, 16)), ("GB", "WEST" + digits(draw, 14))]
    )  # fmt: skip
    value = int("".join(str(int(c, 36)) for c in body + country + "00"))
    found = f"{country}{98 - value % 97:02}{body}"
    return draw.choice([found, grouped(found, 4, " ")])


def resident(draw: random.Random) -> str:
    """A Chinese number (GB 11643-1999): region, birthday, serial, and the check of weights 2^(17-i) modulo 11."""
    region = draw.choice(["110101", "310104", "440305", "510107", "330106"])
    head = (
        f"{region}{draw.randint(1950, 2005)}{draw.randint(1, 12):02}{draw.randint(1, 28):02}{draw.randint(1, 999):03}"
    )
    return head + "10X98765432"[sum(int(d) * 2 ** (17 - i) for i, d in enumerate(head)) % 11]


def melli(draw: random.Random) -> str:
    head = "00" + digits(draw, 7)
    rest = sum(int(d) * (10 - i) for i, d in enumerate(head)) % 11
    found = head + str(rest if rest < 2 else 11 - rest)
    return draw.choice([found, f"{found[:3]}-{found[3:9]}-{found[9]}", found.translate(FARSI), found.translate(ARABIC)])


def email(draw: random.Random) -> str:
    name = draw.choice(["ali.rezaei", "zhang_wei", "o'brien", "j.smith+news", "maria-99", "info", "x", "li2024"])
    return f"{name}@{draw.choice(['example.org', 'mail.example.co.uk', 'qq.com', 'uni-köln.de', 'sub.domain.ir'])}"


def phone(draw: random.Random) -> str:
    n = digits(draw, 8)
    found = draw.choice(
        [f"+98 912 {n[:3]} {n[3:7]}", f"0912{n[:7]}", f"0912-{n[:3]}-{n[3:7]}", f"138{n}", f"138 {n[:4]} {n[4:]}",
         f"+86 139 {n[:4]} {n[4:]}", "(212) 736-" + n[:4], "415-736-" + n[:4], "+44 20 7946 0" + n[:3],
         "021-8877" + n[:4], "010-6234" + n[:4], "+49 30 9018" + n[:4], f"0912{n[:7]}".translate(FARSI)]
    )  # fmt: skip
    return found


def address(draw: random.Random) -> str:
    def octet() -> int:
        return draw.randint(11, 223)

    v6 = [f"2001:db8:85a3::8a2e:370:{draw.randint(1000, 9999)}", f"2606:{draw.randint(1000, 9999)}:2800::8a2e"]
    v4 = [f"203.0.113.{octet()}", f"198.51.100.{octet()}", f"{octet()}.{octet()}.{octet()}.{octet()}"]
    return draw.choice(v6 + v4 * 2)


def planted(seed: int = 0, each: int = 6) -> Iterator[Case]:
    draw = random.Random(seed)
    made = {"email": email, "phone": phone, "ip": address, "card": card, "iban": iban}
    for kind, sentences in SENTENCES.items():
        for sentence in sentences:
            for _ in range(each):
                value = made[kind](draw) if kind in made else draw.choice([resident, melli])(draw)
                yield kind, value, sentence.format(value)
    for value in DOCUMENTED:
        yield "national_id", value, f"My national id is {value}."


NEGATIVES = [
    "Version {a}.{b}.{c}.{d} fixes it.", "Upgrade to v{a}.{b}.{c}-rc{d}",
    "See section {a}.{b}.{c}.{d} of the manual.",
    "pip install numpy=={a}.{b}.{c}", "Released on {date}.", "It ran from {year} to {next}.", "{iso}T12:30:45Z",
    "at {time} on {date}", "unix time {epoch}", "timestamp: {epoch}000", "ISBN {isbn}", "ISBN-13: {isbn_plain}",
    "It costs ${price}.", "€ {price} plus tax", "The total is {big} people.", "commit {hash}",
    "sha256 {hash}{hash}",
    "Tracking number {track} was shipped.", "Order {ten} is ready.", "order #{ten}", "Coordinates: {lat}, {lon}",
    "x = {big} + {ten} # sum", "for i in range({ten}):", "id = 0x{hash}", "uuid {uuid}", "color #{hex}",
    "std::vector<int> v;",
    "a[{a}:{b}:{c}]", "import {{ x }} from '@scope/pkg@{a}.{b}.{c}'", "@app.route('/x{a}')", "icon@2x.png",
    "user@localhost",
    "git clone git@github.com:org/repo{a}.git", "https://example.org/{ten}?id={big}", "arXiv {year}.{five}",
    "pages {a}00-{b}99",
    "ping 192.168.{a}.{b}", 'host = "10.0.{c}.{d}"', "fe80::{a}ff:fe23:4567:890a",
    "127.0.0.1:{five}", "mask 255.255.255.0", "ratio {a}/{b}/{c}", "3.14159265358979{a}", "{price}%",
    "{ten}.{ten} seconds",
    "RFC {five}, CVE-{year}-{five}", "Flight AB{five}", "serial {track}", "score {a}-{b}, {c}-{d}",
    "the {a}th of {year}",
    "12:34:56:{a}{b} frames", "MAC aa:bb:cc:dd:ee:0{d}", "phi = 1.6180339887 {a}",
    "chapter {a}, verse {b}:{c}-{d}",
    "版本 {a}.{b}.{c}.{d} 已发布", "订单号{ten}已发货", "快递单号：{track}", "价格是{price}元",
    "发布于{year}年{a}月{b}日", "坐标：{lat}, {lon}",
    "共有{big}人", "时间戳{epoch}", "编号{eleven}的产品", "书号ISBN {isbn}", "第{a}.{b}.{c}节",
    "增长了{price}%", "订单 138{epoch8} 已取消",
    "{year}-{next}学年", "密度为{price}千克", "哈希值{hash}", "上午{time}开会", "运单{track13}在途",
    "参数x={ten}", "流水号{track16}",
    "نسخه {a}.{b}.{c}.{d} منتشر شد", "شماره سفارش {ten} است", "کد رهگیری {track}", "قیمت {price} تومان",
    "در سال {year} بود",
    "مختصات {lat}, {lon}", "جمعیت {big} نفر", "شابک {isbn}", "تاریخ {fdate}", "ساعت {time}",
    "بخش {a}.{b}.{c}.{d}", "کد پیگیری {eleven}",
    "از {year} تا {next}", "سریال {track}", "مرسوله {track16} رسید", "{price} درصد", "فاکتور {ten}",
    "تراکنش {track16} ناموفق بود",
]  # fmt: skip
"""Versions, dates, ISBNs, prices, code, hashes, times, numbers of parcels and orders, coordinates."""


def isbn13(draw: random.Random) -> str:
    head = "978" + digits(draw, 9)
    return head + str(-sum(int(d) * (3 if i % 2 else 1) for i, d in enumerate(head)) % 10)


def negatives(seed: int = 1, each: int = 4) -> Iterator[str]:
    draw = random.Random(seed)
    for sentence in NEGATIVES:
        for _ in range(each):
            isbn, year = isbn13(draw), draw.randint(1950, 2024)
            hexes = "".join(draw.choices("0123456789abcdef", k=40))
            values = {
                **{name: draw.randint(0, 9) for name in "abcd"},
                "year": year,
                "next": year + draw.randint(1, 9),
                "date": f"{draw.randint(1, 28):02}/{draw.randint(1, 12):02}/{year}",
                "iso": f"{year}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}",
                "fdate": f"۱۴۰{draw.randint(0, 3)}/۰{draw.randint(1, 9)}/۱{draw.randint(0, 9)}".translate(FARSI),
                "time": f"{draw.randint(0, 23):02}:{draw.randint(0, 59):02}:{draw.randint(0, 59):02}",
                "epoch": 1_600_000_000 + draw.randint(0, 10**8),
                "epoch8": digits(draw, 8),
                "isbn": f"{isbn[:3]}-{isbn[3]}-{isbn[4:8]}-{isbn[8:12]}-{isbn[12]}",
                "isbn_plain": isbn,
                "price": f"{draw.randint(1, 9)},{digits(draw, 3)}.{digits(draw, 2)}",
                "big": f"{draw.randint(1, 9)},{digits(draw, 3)},{digits(draw, 3)}",
                "hash": hexes,
                "hex": hexes[:6],
                "uuid": f"{hexes[:8]}-{hexes[8:12]}-4{hexes[12:15]}-a{hexes[15:18]}-{hexes[18:30]}",
                "five": draw.randint(10000, 65000),
                "ten": "9" + digits(draw, 9),
                "eleven": "9" + digits(draw, 10),
                "track": "1Z" + digits(draw, 16),
                "track13": digits(draw, 13),
                "track16": "42" + digits(draw, 14),
                "lat": f"{draw.randint(0, 89)}.{digits(draw, 6)}",
                "lon": f"-{draw.randint(0, 179)}.{digits(draw, 6)}",
            }
            yield sentence.format(**values)
