/**
 * Lines and points in an SVG of its own: axes with round ticks, a legend, nothing from anywhere else. Colours are told
 * apart by those who see few (Okabe and Ito 2008), and every series has a mark of its own too.
 */
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000', '#999999'];
const WIDTH = 720;
const LEGEND_LINE = 16;

export interface Series {
  name: string;
  /** x, y and half the length of an error bar */
  points: readonly (readonly [number, number, number?])[];
  /** default true */
  line?: boolean;
}

export interface PlotOptions { title: string; xLabel: string; yLabel: string; series: readonly Series[]; xNames?: readonly string[] | null; yLog?: boolean; height?: number; }

const BOX = { left: 64, right: 24, top: 40, bottom: 48 };

/** Round steps of 1, 2 or 5 times a power of ten that cover [low, high] in about `wanted` pieces. */
export function ticks(low: number, high: number, wanted = 6): number[] {
  if (!(high > low)) return [low];
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * (1 - 1e-9))!;
  const list: number[] = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) list.push(Number((i * step).toPrecision(12)));
  return list;
}

const escape = (text: string | number) => String(text).replace(/[&<>"]/g, (char) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[char]!);
const label = (x: number, y: number, text: string | number, more = '') => `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escape(text)}</text>`;

function mark(kind: number, x: number, y: number, colour: string): string {
  const at = `${x.toFixed(1)}`;
  switch (kind % 4) {
    case 0: return `<circle cx="${at}" cy="${y.toFixed(1)}" r="3.5" fill="${colour}"/>`;
    case 1: return `<rect x="${(x - 3).toFixed(1)}" y="${(y - 3).toFixed(1)}" width="6" height="6" fill="${colour}"/>`;
    case 2: return `<path d="M${at} ${(y - 4).toFixed(1)}l4 7h-8z" fill="${colour}"/>`;
    default: return `<path d="M${at} ${(y - 4.5).toFixed(1)}l4.5 4.5-4.5 4.5-4.5-4.5z" fill="${colour}"/>`;
  }
}

/** Least and most of the axis: the data with a little air, from zero where the data comes near it. */
function range(values: readonly number[]): [number, number] {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low > 0 && low < high / 2) low = 0;
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const air = (high - low) * 0.04;
  return [low === 0 ? 0 : low - air, high + air];
}

const decades = (values: readonly number[]): [number, number] => [10 ** Math.floor(Math.log10(Math.min(...values))), 10 ** Math.ceil(Math.log10(Math.max(...values) * 1.001))];
const powers = (low: number, high: number) => Array.from({ length: Math.round(Math.log10(high / low)) + 1 }, (_, index) => Number((low * 10 ** index).toPrecision(6)));

/**
 * `series` are `{name, points: [x, y, error?][], line?: boolean}`; an error draws a bar of that half-length. Points that
 * are not finite are left out. `xNames` puts names under whole numbers 0, 1, 2, ... in place of ticks.
 */
export function plot({ title, xLabel, yLabel, series, xNames = null, yLog = false, height = 420 }: PlotOptions): string {
  const canShow = ([x, y]: Series['points'][number]) => Number.isFinite(x) && Number.isFinite(y) && (!yLog || y > 0);
  const shown = series.map((one) => ({ ...one, points: one.points.filter(canShow) })).filter(({ points }) => points.length > 0);
  const all = shown.flatMap(({ points }) => points);
  const total = height + LEGEND_LINE * shown.length;
  const out = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${total}" width="${WIDTH}" height="${total}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${total}" fill="#fff"/>`,
    label(WIDTH / 2, 22, title, 'text-anchor="middle" font-size="15"'),
  ];
  if (all.length === 0) return [...out, label(WIDTH / 2, height / 2, 'no data', 'text-anchor="middle"'), '</svg>', ''].join('\n');

  const [xLow, xHigh] = xNames ? [-0.5, xNames.length - 0.5] : range(all.map(([x]) => x));
  const [yLow, yHigh] = yLog ? decades(all.map(([, y]) => y)) : range(all.flatMap(([, y, error = 0]) => [y - error, y + error]));
  const up = yLog ? (y: number) => Math.log10(Math.max(y, yLow) / yLow) / Math.log10(yHigh / yLow) : (y: number) => (y - yLow) / (yHigh - yLow);
  const [right, bottom] = [WIDTH - BOX.right, height - BOX.bottom];
  const px = (x: number) => BOX.left + ((x - xLow) / (xHigh - xLow)) * (right - BOX.left);
  const py = (y: number) => bottom - up(y) * (bottom - BOX.top);
  for (const y of yLog ? powers(yLow, yHigh) : ticks(yLow, yHigh)) {
    out.push(`<line x1="${BOX.left}" x2="${right}" y1="${py(y).toFixed(1)}" y2="${py(y).toFixed(1)}" stroke="#ddd"/>`, label(BOX.left - 6, py(y) + 4, y, 'text-anchor="end"'));
  }
  const xTicks: (readonly [number, string | number])[] = xNames ? xNames.map((name, index) => [index, name] as const) : ticks(xLow, xHigh, 8).map((x) => [x, x] as const);
  for (const [x, name] of xTicks) {
    out.push(`<line x1="${px(x).toFixed(1)}" x2="${px(x).toFixed(1)}" y1="${bottom}" y2="${bottom + 4}" stroke="#000"/>`, label(px(x), bottom + 18, name, 'text-anchor="middle"'));
  }
  out.push(
    `<path d="M${BOX.left} ${BOX.top}V${bottom}H${right}" fill="none" stroke="#000"/>`,
    label((BOX.left + right) / 2, bottom + 38, xLabel, 'text-anchor="middle"'),
    label(16, (BOX.top + bottom) / 2, yLabel, `text-anchor="middle" transform="rotate(-90 16 ${(BOX.top + bottom) / 2})"`),
  );
  shown.forEach(({ name, points, line = true }, index) => {
    const colour = COLOURS[index % COLOURS.length]!;
    if (line) out.push(`<path d="M${points.map(([x, y]) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join('L')}" fill="none" stroke="${colour}" stroke-width="1.5"${index >= COLOURS.length ? ' stroke-dasharray="5 3"' : ''}/>`);
    for (const [x, y, error] of points) {
      if (error !== undefined && error > 0) out.push(`<line x1="${px(x).toFixed(1)}" x2="${px(x).toFixed(1)}" y1="${py(y - error).toFixed(1)}" y2="${py(y + error).toFixed(1)}" stroke="${colour}"/>`);
      out.push(mark(index, px(x), py(y), colour));
    }
    const at = height + LEGEND_LINE * index;
    out.push(mark(index, BOX.left + 6, at, colour), label(BOX.left + 18, at + 4, name));
  });
  return [...out, '</svg>', ''].join('\n');
}
