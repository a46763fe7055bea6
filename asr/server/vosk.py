"""The WebSocket protocol of vosk-server (asr_server.py): every message but a configuration has exactly one answer."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

from asr.segmenter import Hypothesis
from asr.server.pcm import PcmReader
from asr.server.refusal import Refusal
from asr.server.service import Service
from asr.server.settings import StreamSettings, hotwords
from asr.server.socket import Socket, json_object
from asr.transcript import Word

UNKNOWN_WORD = "[unk]"  # in a phrase list: whatever else may be said


async def handle(request: web.Request, service: Service) -> web.StreamResponse:
    """One client, from its first message to its last."""
    async with Socket.accept(request, service, explain=False) as socket:
        with service.place("vosk"):
            client = _Client(socket, service)
            while await client.utterance():
                pass
    return socket.response


class _Client:
    def __init__(self, socket: Socket, service: Service) -> None:
        self._socket = socket
        self._service = service
        self._settings = StreamSettings()
        self._with_words = True
        self._partial = ""

    async def utterance(self) -> bool:
        """Answers messages up to the end or a reset; whether there may be another utterance."""
        message = await self._configured()
        async with self._service.session(self._settings) as session:
            pcm = PcmReader("<i2")
            try:
                while message.type == WSMsgType.BINARY:
                    await self._answer(await session.accept(pcm.read(message.data)))
                    message = await self._socket.receive()
                command = json_object(message)
                if not command.keys() & {"eof", "reset"}:
                    raise Refusal("bad_message", 'a text message must be {"config": ...}, {"eof": 1} or {"reset": 1}')
            finally:
                last = await session.rest()
            await self._socket.send(self._result(last))
        return "reset" in command

    async def _configured(self) -> WSMessage:
        """Takes configurations; the first message that is none."""
        while True:
            message = await self._socket.receive()
            config = None if message.type == WSMsgType.BINARY else json_object(message).get("config")
            if config is None:
                return message
            if not isinstance(config, dict):
                raise Refusal("bad_setting", '"config" must be an object')
            if "sample_rate" in config:
                rate = StreamSettings.parse({"sample_rate": config["sample_rate"]}).sample_rate
                self._settings = replace(self._settings, sample_rate=rate)
            if "phrase_list" in config:
                phrases = config["phrase_list"]
                known = [p for p in phrases if p != UNKNOWN_WORD] if isinstance(phrases, list) else phrases
                self._settings = replace(self._settings, hotwords=hotwords(known))
            self._with_words = bool(config.get("words", self._with_words))

    async def _answer(self, hypotheses: list[Hypothesis]) -> None:
        finals = [hypothesis for hypothesis in hypotheses if hypothesis.is_final]
        partials = [hypothesis.text for hypothesis in hypotheses if not hypothesis.is_final]
        self._partial = partials[-1] if partials else "" if finals else self._partial
        await self._socket.send(self._result(finals) if finals else {"partial": self._partial})

    def _result(self, finals: Iterable[Hypothesis]) -> dict[str, Any]:
        words = [word for final in finals for word in final.words]
        text = {"text": " ".join(word.text for word in words)}
        return {"result": [_word(word) for word in words], **text} if words and self._with_words else text


def _word(word: Word) -> dict[str, Any]:
    return {
        "conf": round(word.confidence, 6),
        "end": round(word.end, 3),
        "start": round(word.start, 3),
        "word": word.text,
    }
