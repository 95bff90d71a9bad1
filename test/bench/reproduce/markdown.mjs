/** Markdown tables and figures as they stand in the pages. */
export const percent = (share, digits = 1) => (share === null || !Number.isFinite(share) ? '-' : `${(share * 100).toFixed(digits)}%`);
export const fixed = (value, digits) => (value === null || !Number.isFinite(value) ? '-' : value.toFixed(digits));
export const signed = (value, digits = 2) => (value === null || !Number.isFinite(value) ? '-' : `${value < 0 ? '-' : '+'}${Math.abs(value).toFixed(digits)}`);
/** A change of perplexity in percent with its 95% interval, as `pairedLoss` gives it. */
export const lossText = ({ percent: value, percentError }) => `${signed(value)}%${percentError === null ? '' : ` ± ${(1.96 * percentError).toFixed(2)}`}`;

/** All but the first column are figures, set right. */
export function table(headers, rows) {
  const line = (cells) => `| ${cells.map((cell) => String(cell).replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(headers), line(headers.map((_, index) => (index === 0 ? '---' : '---:'))), ...rows.map(line)].join('\n');
}
