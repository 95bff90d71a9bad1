"""SentencePiece BPE as llama.cpp does it (llm_tokenizer_spm): of all neighbouring pieces whose joint text is in the
vocabulary, the pair with the best score is joined, the leftmost on a tie; what is left over becomes bytes.

No piece of this vocabulary has a space after another character, so joining never crosses the beginning of a word, and
the text may be cut there: each word is tokenised once.
"""
import re

from gguf import GGUFReader

SPACE = '\u2581'


class Tokenizer:
    def __init__(self, gguf_path):
        fields = GGUFReader(gguf_path).fields
        pieces = fields['tokenizer.ggml.tokens'].contents()
        scores = fields['tokenizer.ggml.scores'].contents()
        crossing = [piece for piece in pieces if SPACE in piece.lstrip(SPACE)]
        if crossing:
            raise ValueError(f'{gguf_path}: the piece {crossing[0]!r} spans words, which this tokenizer does not support')
        self.ids = {piece: i for i, piece in enumerate(pieces)}
        self.scores = dict(zip(pieces, scores))
        self.words = {}

    def encode(self, text):
        text = SPACE + text.replace(' ', SPACE)
        return [i for word in re.findall(f'{SPACE}*[^{SPACE}]+|{SPACE}+', text) for i in self.word(word)]

    def word(self, word):
        if word not in self.words:
            self.words[word] = [i for piece in self.joined(list(word)) for i in self.piece(piece)]
        return self.words[word]

    def joined(self, pieces):
        while True:
            pairs = [(self.scores[a + b], -i) for i, (a, b) in enumerate(zip(pieces, pieces[1:])) if a + b in self.scores]
            if not pairs:
                return pieces
            i = -max(pairs)[1]
            pieces[i:i + 2] = [pieces[i] + pieces[i + 1]]

    def piece(self, piece):
        return [self.ids[piece]] if piece in self.ids else [self.ids[f'<0x{byte:02X}>'] for byte in piece.encode()]
