//! Batches as tables, and tables as batches.

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Word {
    word: String,
}

#[derive(Clone, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
struct Total {
    word: String,
    total: i64,
}

/// Counts by SQL.
async fn by_sql(words: Rdd<String>) -> anyhow::Result<DataFrame> {
    let session = SessionContext::new();
    let frame = words.map(|word| Word { word }).to_df(&session)?;
    session.register_table("words", frame.into_view())?;
    Ok(session.sql("SELECT word, COUNT(*) AS total FROM words GROUP BY word").await?)
}

#[test]
fn sql_over_a_batch_gives_the_next_stream_its_rows() {
    let counted = |words: Rdd<String>, _: Time| {
        let frame = async move { by_sql(words).await.map_err(|error| datafusion::error::DataFusionError::External(error.into())) };
        Rdd::<Total>::from_df(frame).map(|row| (row.word, row.total))
    };
    let pair = |word: &str, n: i64| (word.to_string(), n);
    check(
        move |s| s.transform(counted),
        &[(1, "b a b"), (2, ""), (3, "c")],
        [(1, vec![pair("a", 1), pair("b", 2)]), (2, vec![]), (3, vec![pair("c", 1)])],
    );
}

#[derive(Clone, Serialize, Deserialize)]
struct Inner {
    x: f64,
    y: Option<bool>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Wide {
    #[serde(rename = "id")]
    number: u64,
    name: Option<String>,
    tags: Vec<String>,
    inner: Inner,
    small: i16,
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_those_of_the_struct_whatever_is_in_the_batch() {
    let session = SessionContext::new();
    let rows = [Some("a"), None].map(|name| Wide {
        number: u64::MAX,
        name: name.map(str::to_owned),
        tags: vec!["t".into(), "u".into()],
        inner: Inner { x: 0.5, y: None },
        small: -1,
    });
    let inner = vec![Field::new("x", DataType::Float64, false), Field::new("y", DataType::Boolean, true)];
    let wanted = Schema::new(vec![
        Field::new("id", DataType::UInt64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("tags", DataType::List(Arc::new(Field::new("item", DataType::Utf8, false))), false),
        Field::new("inner", DataType::Struct(inner.into()), false),
        Field::new("small", DataType::Int16, false),
    ]);
    for (rdd, count) in [(Rdd::parallelize(rows), 2), (Rdd::empty(), 0)] {
        let frame = rdd.to_df(&session).unwrap();
        assert_eq!(frame.schema().as_arrow().fields(), wanted.fields());
        assert_eq!(frame.clone().count().await.unwrap(), count);
        // And back, twice from the same frame.
        for _ in 0..2 {
            let frame = frame.clone();
            let back = Rdd::<Wide>::from_df(async { Ok(frame) }).collect().await.unwrap();
            assert_eq!(back.iter().filter(|row| row.number == u64::MAX && row.tags.len() == 2 && row.small == -1).count(), count);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn record_batches_are_tables_too() {
    let session = SessionContext::new();
    let of = |name: &str, values: Vec<i64>| RecordBatch::try_from_iter([(name, Arc::new(Int64Array::from(values)) as ArrayRef)]).unwrap();
    let schema = of("n", vec![]).schema();
    let rdd = Rdd::from_partitions(vec![vec![of("n", vec![1, 2])], vec![], vec![of("n", vec![3])]]);
    session.register_table("t", rdd.create_data_frame(&session, schema.clone()).unwrap().into_view()).unwrap();
    let sum = session.sql("SELECT SUM(a.n) AS total, 'x' AS word FROM t AS a JOIN t AS b ON a.n = b.n").await.unwrap();
    let found = Rdd::<Total>::from_df(async { Ok(sum) }).collect().await.unwrap();
    assert_eq!(found, [Total { word: "x".into(), total: 6 }]);
    let other = Rdd::from_partitions(vec![vec![of("m", vec![1])]]).create_data_frame(&session, schema).unwrap();
    let error = other.collect().await.unwrap_err().to_string();
    assert!(error.contains("a record batch has another schema"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_column_is_named() {
    #[derive(Clone, Serialize, Deserialize)]
    enum Kind {
        A,
    }
    #[derive(Clone, Serialize, Deserialize)]
    struct Deep {
        kind: Vec<Kind>,
    }
    #[derive(Clone, Serialize, Deserialize)]
    struct Outer {
        deep: Option<Deep>,
    }
    #[derive(Clone, Serialize, Deserialize)]
    struct Endless {
        next: Vec<Endless>,
    }
    let session = SessionContext::new();
    let outer = Rdd::from_partitions(vec![vec![Outer { deep: Some(Deep { kind: vec![Kind::A] }) }]]);
    let error = outer.to_df(&session).err().unwrap().to_string();
    assert!(error.contains("Outer: `deep.kind[]` is an enum, for which there is no column"), "{error}");
    let error = Rdd::<Endless>::empty().to_df(&session).err().unwrap().to_string();
    assert!(error.contains("nested too deeply"), "{error}");
    let error = Rdd::<String>::empty().to_df(&session).err().unwrap().to_string();
    assert!(error.contains("String is no struct with named fields"), "{error}");
}
