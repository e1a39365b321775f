"""Words of tickets in some languages: topics, words that mean nothing, and answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Language:
    """What tickets are made of.

    Attributes:
        topics: the words for each topic.
        fillers: words that mean nothing, the most frequent first.
        answers: the candidates' texts by their ids.
        lengths: how many fillers a ticket has.
        space: between words.
    """

    topics: Sequence[Sequence[str]]
    fillers: Sequence[str]
    answers: dict[str, str]
    lengths: range = range(8, 25)
    space: str = " "

    def joined(self, words: Sequence[str]) -> str:
        """Return a text of these words."""
        return self.space.join(words)


def _words(text: str) -> list[str]:
    return text.split()


ENGLISH = Language(
    topics=[
        ("broken", "cracked", "smashed"),
        ("late", "delayed", "overdue"),
        ("refund", "chargeback", "reimbursement"),
        ("password", "login", "locked"),
        ("invoice", "billing", "charged"),
        ("missing", "lost", "stolen"),
        ("wrong", "mistaken", "swapped"),
        ("cancel", "terminate", "unsubscribe"),
    ],
    fillers=_words(
        "the i my and to a it is was for of you please on have this that in with not be "
        "order but so me just can today when they would your about we from there been had "
        "what at box still after week again told said think really very also hello thanks "
        "know time one want service because will since day other now shop never friend "
        "then two called house mail morning sister colour yesterday quite street paper "
        "office money phone"
    ),
    answers={
        "apologise": "Say sorry and explain.",
        "replace": "Send another one.",
        "repay": "Give the money back.",
        "escalate": "Hand over to a person.",
    },
)
RUSSIAN = Language(
    topics=[
        ("разбит", "разбита", "треснула"),
        ("опоздала", "опоздал", "задержали"),
        ("возврат", "возврата", "вернуть"),
        ("пароль", "пароля", "войти"),
        ("счёт", "счета", "оплата"),
        ("пропала", "потеряли", "украли"),
        ("перепутали", "другой", "чужой"),
        ("отменить", "отмена", "отказаться"),
    ],
    fillers=_words(
        "и в я не что на мой это с но как у заказ пожалуйста мне вы был ещё так за по уже "
        "все меня он если она было они из к для когда очень бы только здравствуйте "
        "спасибо вчера день сегодня магазин потом сказал коробка неделя снова тоже дома "
        "утром сестра деньги вот время почта друг работа цвет звонил улица бумага два "
        "сейчас ваш давно телефон товар хотел"
    ),
    answers={
        "извиниться": "Попросить прощения и объяснить.",
        "заменить": "Отправить новый товар.",
        "вернуть-деньги": "Вернуть деньги покупателю.",
        "позвать": "Передать разговор человеку.",
    },
)
CHINESE = Language(
    topics=[
        ("摔坏", "破损", "裂开"),
        ("迟到", "延误", "太慢"),
        ("退款", "退钱", "返还"),
        ("密码", "登录", "锁定"),
        ("发票", "账单", "扣费"),
        ("丢失", "不见", "被偷"),
        ("发错", "弄错", "错误"),
        ("取消", "退订", "终止"),
    ],
    fillers=_words(
        "我 的 你们 了 请 是 在 这个 订单 昨天 今天 但是 还是 因为 "
        "收到 已经 快递 东西 谢谢 您好 时候 "
        "朋友 没有 现在 一个 可以 商店 箱子 电话 "
        "早上 下午 颜色 家里 "
        "工作 星期 再次 真的 非常 觉得 希望 知道 帮忙 什么 怎么 "
        "告诉 客服 地址 街道 办公室 姐姐 两个 一直 以后"
    ),
    answers={
        "道歉": "向客户道歉并解释。",
        "换货": "重新寄一个新的。",
        "退钱": "把钱退给客户。",
        "转人工": "转给人工客服处理。",
    },
    space="",
)


def _invented(count: int) -> list[str]:
    """Return words of two to four syllables that nobody knows."""
    random = Random(0)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "u", "an", "or")]
    words = {"".join(random.choices(syllables, k=random.randint(2, 4))) for _ in range(count)}
    return sorted(words)


LONG = Language(
    topics=ENGLISH.topics,
    fillers=[*ENGLISH.fillers, *_invented(2000)],
    answers=ENGLISH.answers,
    lengths=range(200, 401),
)
