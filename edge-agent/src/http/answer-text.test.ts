import { AnswerText } from './answer-text';

/** What is shown, piece by piece, and at the end. */
function show(stops: string[], pieces: (string | number[])[]): { shown: string[]; stopped: boolean } {
  const text = new AnswerText(stops);
  const shown = pieces.map((piece) => text.push(typeof piece === 'string' ? Buffer.from(piece) : Uint8Array.from(piece)));
  return { shown: [...shown, text.finish()], stopped: text.stopped };
}

test.each<[string, string[], (string | number[])[], string[], boolean]>([
  ['shows text as it comes', [], ['a', 'b'], ['a', 'b', ''], false],
  ['joins a character cut between tokens', [], [[0xf0, 0x9f], [0x98], [0x80]], ['', '', '😀', ''], false],
  ['joins a character with text around it', [], [[0x61, 0xc3], [0xa9, 0x62]], ['a', 'éb', ''], false],
  ['marks bytes that are no UTF-8', [], [[0xff], 'a'], ['\ufffd', 'a', ''], false],
  ['marks a character that never ends', [], ['a', [0xe2, 0x82]], ['a', '', '\ufffd'], false],
  ['keeps a byte order mark', [], [[0xef, 0xbb, 0xbf]], ['\ufeff', ''], false],
  ['ends at a stop string', ['.'], ['a', '.', 'b'], ['a', '', '', ''], true],
  ['ends at a stop string inside a piece', ['END'], ['abENDcd'], ['ab', ''], true],
  ['never shows the begin of a stop string', ['\n\n'], ['a', '\n', '\n', 'b'], ['a', '', '', '', ''], true],
  ['shows what only looked like one', ['\n\n'], ['a', '\n', 'b'], ['a', '', '\nb', ''], false],
  ['shows what only looked like one at the end', ['\n\n'], ['a', '\n'], ['a', '', '\n'], false],
  ['finds one that begins inside a false begin', ['aab'], ['a', 'a', 'a', 'b'], ['', '', 'a', '', ''], true],
  ['takes the one complete first', ['bcd', 'c'], ['abcd'], ['ab', ''], true],
  ['takes the longer of two complete together', ['c', 'bc'], ['abc'], ['a', ''], true],
  ['finds a stop string of several bytes cut between tokens', ['é'], [[0x61, 0xc3], [0xa9]], ['a', '', ''], true],
  ['takes any of several', ['X', 'Y', 'Z'], ['aZb'], ['a', ''], true],
])('%s', (_, stops, pieces, shown, stopped) => {
  expect(show(stops, pieces)).toEqual({ shown, stopped });
});

test('shows the same however the bytes are cut', () => {
  const random = lcg(7);
  for (let round = 0; round < 400; round += 1) {
    const text = Array.from({ length: 30 }, () => 'abé😀\n'.match(/./gsu)![Math.floor(random() * 5)]).join('');
    const stops = Array.from({ length: Math.floor(random() * 4) }, () => {
      const length = 1 + Math.floor(random() * 3);
      return Array.from({ length }, () => 'abé😀\n'.match(/./gsu)![Math.floor(random() * 5)]).join('');
    });
    const bytes = Buffer.from(text);
    const whole = show(stops, [[...bytes]]);
    const pieces: number[][] = [];
    for (let at = 0; at < bytes.length;) {
      const length = 1 + Math.floor(random() * 5);
      pieces.push([...bytes.subarray(at, at + length)]);
      at += length;
    }
    const cut = show(stops, pieces);
    expect([cut.shown.join(''), cut.stopped]).toEqual([whole.shown.join(''), whole.stopped]);
    for (const stop of stops) expect(cut.shown.join('')).not.toContain(stop);
  }
});

function lcg(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}
