"""Take the identity out of a Chinese caption.

Chinese marks neither words nor tenses, but its captions are chains of short clauses between commas, and what describes
a person stands before 的 or after a verb of having. So each clause is searched for traits by itself: a clause about a
trait goes, an attribute before the person goes alone, and the person stays as subject of the next clause.
"""

import re
from dataclasses import dataclass, field

from zimage.captions.words import LeakWords, pattern

PERSON = (
    "女人|男人|女子|男子|女性|男性|女士|男士|先生|小姐|女孩|男孩|姑娘|小伙子|女郎|妇女|妇人|老人|老年人|年轻人|"
    "青年|学生|模特|歌手|厨师|"
    "医生|教师|老师|工人|农民|渔民|舞者|演员|司机|士兵|警察|运动员|游客|人士|人物|画家|作家|艺术家|音乐家|摄影师|"
    "工程师|新娘|新郎|人(?![们群行造工])"
)
OTHERS = (
    "洋娃娃|娃娃|玩偶|人偶|雕像|雕塑|石像|小狗|狗|猫|小猫|马|孩子|婴儿|宝宝|儿子|女儿|海报|画像|漫画|卡通|假人|"
    "木偶|玩具|毛绒|骷髅"
)
HAVING = (
    "留着一头|留着|留有|蓄着|蓄有|扎着|扎有|扎了|梳着|梳了|披着|披散着|顶着|长着|长有|有着|拥有|剃着|剃了|编着|"
    "盘着|染着|烫着|露出|带着|有"
)
# Parts of a body say who somebody is only with a description that lasts.
PARTS = (
    "眼睛|眼眸|双眼|双眸|皮肤|肌肤|鼻子|鼻梁|嘴唇|双唇|下巴|下颌|额头|身材|体格|体型|身形|五官|肩膀|脸庞|脸型|"
    "脸蛋|面容|面孔|面庞|眉毛|睫毛|颧骨|肤色|脸|眼|耳朵|双腿|气质"
)
LASTING = (
    "蓝|绿|棕|褐|黑|灰|碧|琥珀|浅|深|金|白|黄|大|小|圆|细|长|高|挺|翘|厚|薄|丰满|饱满|宽|窄|尖|方|白皙|白净|黝黑|"
    "古铜|小麦|红润|细腻|光滑|苍白|蜡黄|暗沉|精致|立体|"
    "清秀|深邃|明亮|水汪汪|炯炯有神|苗条|高挑|娇小|匀称|健壮|健硕|魁梧|纤细|修长|瘦削|清瘦|消瘦|瘦|胖|微胖|壮|"
    "浓密|稀疏|粗|弯弯|卷翘|圆润|棱角分明|俊朗|俊美|姣好|端正|英俊|"
    "秀气|高大|矮小|结实|肌肉发达|丰腴|单薄|双|单|塌|突出|凹陷|布满皱纹|沧桑|年轻|稚嫩|柔美|挺拔|强壮|宽厚|宽阔|"
    "鹅蛋|瓜子|国字"
)
# After a trait these make it the name of a thing: a hair clip, skin cream.
COMPOUND = r"夹|带|圈|饰|套|网|店|厅|馆|师|品|香|油|膜|环|钉|剪刀|梳子|箍|绳|廊|霜|科|膏|影|镜|罩|刷|液|乳|帽|巾"
LASTING = "|".join(sorted(LASTING.split("|"), key=len, reverse=True))  # the longest first, as a pattern wants it
STATES = "闭|睁|眯|看|望|直视|注视|凝视|盯|含|噙|蒙|低垂|微闭|紧闭|微张|紧抿|扬|抬|贴|靠|埋|沾|涂|朝|向|在.{0,6}下"
_ADVERB = "很|非常|十分|略|稍|较|比较|偏|有些|有点|特别|极其|相当|更|又|也|都|显得|略显|看起来|看上去|微微"
_VERBS = (
    "穿|戴|身穿|身着|手|站|坐|走|抱|拿|背|靠|系|撑|举|微笑|笑|正|在|弹|看|望|露出笑|围|披上|双手|面|握|提|拄|骑|"
    "躺|蹲|跑|跳"
)
_PLACE = (
    r"(?:左|右|两)?(?:脸颊|脸庞|脸|鼻子|鼻梁|鼻尖|下巴|额头|手臂|胳膊|脖子|颈部|眉毛|眼角|嘴角|眼下|面部)"
    r"(?:上|旁|边|处|下方|上方|附近)?$"
)
# What hands do to hair: the clause about it goes.
_TOUCHING = (
    r"(?:正在|正|一边|不时|轻轻|用?(?:左|右|双|一只)?手)*(?:拨弄|抚摸|梳理|整理|触摸|抚弄|撩起|撩|捋|梳|摸|甩|拨|扎|绑|吹|洗|理)(?:着|了|动)?"
    r"(?:自己|[她他])?的?[^，穿戴]{0,4}$"
)
_NUMBER = "[一二三四五六七八九十百两\\d]+"
AGE = re.compile(
    rf"(?:(?:看起来|看上去|看似|大约|大概|约莫|年约|年近|年过|年仅|年龄|约|近|已)(?:在|有|是|为)?)*"
    rf"(?:{_NUMBER}(?:多|几|来|出头)?岁(?!月)(?:左右|上下|出头|不到|的样子|至{_NUMBER}岁)?"
    rf"|{_NUMBER}几?十?[至到]{_NUMBER}岁(?:之间|左右)?|[二三四五六七八九]十(?:出头|来岁|多岁|开外)|(?:年约|年近|年过|已过)(?:半百|花甲|古稀|{_NUMBER})"
    r"|(?:正值|处于)?(?:青春期|豆蔻年华|花季))(?:的(?:年纪|样子)?)?"
)
LIKENESS = re.compile(
    rf"(?:长得|长相|样貌|相貌|面容|看起来|看上去)*(?:酷似|神似|很像|像极了|好像|(?<![肖雕图头影画人录摄石铜])像|类似于?|如同|仿佛)[^，。；的]{{1,14}}?(?:的(?=(?:{PERSON}))|(?=[，。；]|$))"
)
_SURNAMES = (
    ""
    "王李张刘陈杨赵黄周吴徐孙胡朱林何郭罗梁宋郑谢韩唐冯董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范石姚谭廖邹熊陆郝孔崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文"
)
NAME = re.compile(
    rf"(?:^|(?<=。))(?:[{_SURNAMES}](?![着了在的有是色衣边板头桥路上下里中人])[\u4e00-\u9fff]{{1,2}}?)(?=(?:{_VERBS}|的|和|，))(?!{PERSON})"
)


@dataclass
class _Work:
    """What a clause is searched with, and what was taken out so far."""

    traits: re.Pattern[str]
    words: re.Pattern[str]
    noun: str
    removed: list[tuple[str, str]] = field(default_factory=list)

    def drop(self, word: str, text: str) -> str:
        self.removed.append((word, text))
        return ""


def filter_chinese(caption: str, lists: LeakWords, noun: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the caption without traits, and (word found, text taken out) for each of them."""
    single = [word for word in lists.segment if word not in ("岁", "多岁") and not re.fullmatch(PARTS, word)]
    work = _Work(pattern(single, "zh"), pattern(lists.word, "zh"), noun)
    caption = LIKENESS.sub(lambda found: work.drop(found.group(), found.group()), caption)
    caption = NAME.sub(lambda found: work.drop(found.group(), found.group()) or noun, caption)
    caption = AGE.sub(lambda found: work.drop(found.group(), found.group()), caption)
    pieces = re.split(r"(?<=[，。；！？])", caption)
    out: list[str] = []
    for piece in pieces:
        mark = piece[-1:] if piece[-1:] in "，。；！？" and piece else ""
        clause = piece[: len(piece) - len(mark)]
        left = _tidied(_clause(clause, work), clause)
        alone = mark == "，" and re.fullmatch(rf"(?:(?:图|照片|画面)中)?(?:一?[位名个])?(?:{PERSON})|[她他其]们?", left)
        out.append(left if alone else left + mark)
    return _joined(out), work.removed


def _clause(clause: str, work: _Work) -> str:
    clause = _traits(clause, work)
    clause = _parts(clause, work)
    return _words(clause, work)


def _traits(clause: str, work: _Work) -> str:
    at = 0
    while found := work.traits.search(clause, at):
        start, end = found.span()
        if re.match(COMPOUND, clause[end:]) or re.match(rf"的?(?:小)?(?:{OTHERS})", clause[end:]):
            at = end
            continue
        left = _left(clause, start)
        attribute = re.match(rf"(?:的|[、和与及])?[^，的]{{0,8}}?的?(?=(?:{PERSON}))", clause[end:])
        if attribute and re.match(r"[、和与及]", clause[end:]):
            right = end + 1  # the next trait of the list goes in the next round
        elif attribute and len(attribute.group()) <= 5 and not re.match(f"(?:{_VERBS})", clause[end:]):
            right = end + (1 if clause[end : end + 1] == "的" else 0)
            if clause[left:start].startswith(tuple(HAVING.split("|"))) and clause[end : end + 1] != "的":
                right = end
        else:
            right = end + _predicate(clause[end:])
        work.removed.append((found.group(), clause[left:right]))
        clause = clause[:left] + clause[right:]
        at = left
    return clause


def _left(clause: str, start: int) -> int:
    """Return where the phrase begins whose noun is at `start`: after the last verb, owner or comma before it."""
    head = clause[:start]
    owner = re.search(rf"^.*(?:{PERSON}|[她他其]们?)的?(?!.*(?:{PERSON}))", head)
    base = owner.end() if owner else 0
    have = list(re.finditer(HAVING, head[base:]))
    if have:
        base += have[-1].start()
        for verb in have:
            between = head[owner.end() if owner else 0 :][verb.end() :]
            if not re.search(f"[和与及、并]|{_VERBS}", between):
                base = (owner.end() if owner else 0) + verb.start()
                break
    else:
        listed = [
            match.end()
            for match in re.finditer(
                rf"[、并且]|[和与及]|一[位名个]|那[位名个]|这[位名个]|(?:{_VERBS})着?", head[base:]
            )
        ]
        base += listed[-1] if listed else 0
    if base and (place := re.search(_PLACE, head[:base])):
        base = place.start()
    touch = re.search(_TOUCHING, head)
    return min(base, touch.start()) if touch else base


def _predicate(rest: str) -> int:
    """Return how much of what follows a trait tells about it: all up to a new verb of the person or another noun."""
    stop = re.search(rf"[、和与及](?!.{{0,3}}(?:{HAVING}))|并且?(?=[{_VERBS[0]}\u4e00-\u9fff])|而(?:且)?|，|同时", rest)
    if stop is None:
        verb = re.match(rf"(?:{_VERBS})(?!在(?:脑后|肩|耳|胸|背))", rest)
        return 0 if verb else len(rest)
    return stop.start()


def _parts(clause: str, work: _Work) -> str:
    at = 0
    part = re.compile(PARTS)
    lasting = re.compile(rf"(?:(?:{LASTING})(?:色)?(?:的|而|又|且|、)?)+$")
    says = re.compile(
        rf"(?:是|很|较|呈|偏)*(?:{_ADVERB})*(?:是|呈)*(?:(?:{LASTING})(?:色|而|又|且|的)*)+(?=$|[、和与及并且]|[^，]{{0,4}}?(?:{PERSON}))"
    )
    while found := part.search(clause, at):
        start, end = found.span()
        if re.match(COMPOUND, clause[end:]) or (
            found.group() in ("脸", "眼") and re.match(r"[上部前中神角颊]", clause[end:])
        ):
            at = end
            continue
        before, after = lasting.search(clause[:start]), says.match(clause[end:])
        if re.match(rf"的?(?:{OTHERS})", clause[end:]):
            at = end
        elif after and not (before and re.match(STATES, clause[end:])):
            left = _left(clause, start)
            work.removed.append((clause[start : end + after.end()], clause[left : end + after.end()]))
            clause, at = clause[:left] + clause[end + after.end() :], left
        elif before and before.group():
            clause, at = _described(clause, before.start(), start, end, work)
        else:
            at = end
    return clause


def _described(clause: str, first: int, start: int, end: int, work: _Work) -> tuple[str, int]:
    rest = clause[end:]
    if rest and not re.match(rf"的?[^，]{{0,6}}?(?:{PERSON})|[、和与及并]", rest):
        work.removed.append((clause[first:end], clause[first:start]))
        return clause[:first] + clause[start:], first + end - start
    left = min(_left(clause, first), first)
    right = end + (1 if re.match(rf"的(?=[^，]{{0,6}}?(?:{PERSON}))", rest) else 0)
    if re.match(r"[、和与及]", rest):
        right = end + 1
        have = re.match(HAVING, clause[left:])
        left = left + have.end() if have else left
    work.removed.append((clause[first:end], clause[left:right]))
    return clause[:left] + clause[right:], left


def _words(clause: str, work: _Work) -> str:
    at = 0
    while found := work.words.search(clause, at):
        start, end = found.span()
        degree = re.search(rf"(?:{_ADVERB})+$", clause[:start])
        first = degree.start() if degree else start
        near = re.match(rf"的?[^，穿戴站坐在着里店馆厅]{{0,6}}?(?:{PERSON})", clause[end:])
        lone = re.fullmatch(rf"(?:[她他]|这?位?(?:{PERSON}))?(?:是|长得|显得)?", clause[:first]) and re.fullmatch(
            "的?", clause[end:]
        )
        if near and not re.match(rf"的?(?:{OTHERS})", clause[end:]):
            last = end + (1 if clause[end : end + 1] in "的、" and clause[end : end + 1] else 0)
            work.removed.append((found.group(), clause[first:last]))
            clause, at = clause[:first] + clause[last:], first
        elif lone:
            work.removed.append((found.group(), clause[first:]))
            clause, at = re.sub(r"(?:是|长得|显得)$", "", clause[:first]), first
        elif re.match(r"的?(?:面孔|长相|血统|特征|外貌|容貌|五官)", clause[end:]):
            left = _left(clause, start)
            work.removed.append((found.group(), clause[left:]))
            clause, at = clause[:left], left
        else:
            at = end
    return clause


def _tidied(clause: str, original: str) -> str:
    """Return a clause with what removed phrases left behind put right."""
    if clause == original:
        return clause
    clause = re.sub(rf"(?:{HAVING})(?=[、和与及])", "", clause)
    clause = re.sub(r"(一[位名个]|那[位名个]|这[位名个])[、和与及的]+", r"\1", clause)
    clause = re.sub(r"^[、和与及并且而的]+|[、和与及并且而]+$", "", clause)
    clause = re.sub(r"([、和与及])[、和与及]+", r"\1", clause)
    clause = re.sub(rf"(?:(?:{HAVING})一?[头双张条副]?的?)$", "", clause) if not re.search(r"没有$", clause) else clause
    clause = re.sub(rf"({PERSON}|[她他])(?:[并且而]+)(?={_VERBS})", r"\1", clause)
    clause = re.sub(r"^(她|他|其)的$", r"\1", clause)
    clause = re.sub(rf"({PERSON})的$", r"\1", clause)
    return re.sub(r"(?:一[头双张副]|的)$", "", clause)


def _joined(pieces: list[str]) -> str:
    """Return the clauses as sentences; an empty one goes, with its comma."""
    text = ""
    for piece in pieces:
        mark = piece[-1:] if piece and piece[-1] in "，。；！？" else ""
        clause = piece[: len(piece) - len(mark)]
        if not clause.strip():
            if mark and mark != "，" and text.endswith("，"):
                text = text[:-1] + mark
            continue
        text += piece
    if text.count("一边") == 1:  # half of "while doing this, doing that"
        text = text.replace("一边", "正在")
    return text.rstrip("，")
