/**
 * The tables, in the order of the page. Each is `name`, `title`, `measure(bench, options)` → plain JSON (null where data it
 * needs was not given), `page(data)` → Markdown, `plots(data)` → `{file: svg}`.
 */
import * as choiceAccuracy from './choice-accuracy.mjs';
import * as domainShift from './domain-shift.mjs';
import * as eviction from './eviction.mjs';
import * as expertUse from './expert-use.mjs';
import * as gsm8k from './gsm8k.mjs';
import * as lambdaSweep from './lambda-sweep.mjs';
import * as lifetime from './lifetime.mjs';
import * as mmlu from './mmlu.mjs';
import * as operatingPoint from './operating-point.mjs';
import * as pareto from './pareto.mjs';
import * as prefillBias from './prefill-bias.mjs';
import * as rankCost from './rank-cost.mjs';
import * as speculation from './speculation.mjs';

export const TABLES = [rankCost, pareto, operatingPoint, lambdaSweep, lifetime, eviction, speculation, domainShift, prefillBias, expertUse, choiceAccuracy, gsm8k, mmlu];
